"""codec.exact.weights.layer_scales: scales of layers are exact on their grid, and never change."""

import hashlib
import math

import numpy as np

from codec.exact.weights import layer_scales
from codec.model.config import ModelConfig


def test_scales_are_rounded_inverse_roots():
    scales = layer_scales(ModelConfig(num_layers=100, ln_scale=True))
    for layer, scale in enumerate(scales):
        assert scale * 65536 == round(65536 / math.sqrt(layer + 1))
    assert layer_scales(ModelConfig(num_layers=3)) == [1.0, 1.0, 1.0]


def test_digest():
    """A change of any entry changes the integers that packs decode to."""
    scales = np.array(layer_scales(ModelConfig(num_layers=32, ln_scale=True))) * 65536
    assert hashlib.sha256(scales.astype("<i8").tobytes()).hexdigest()[:16] == "8217ac8516f555a8"
