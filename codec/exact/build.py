"""Make the exact model of a config, whatever its family."""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from codec.exact.model import ExactModel
from codec.exact.network import ExactNetwork
from codec.exact.transformer import ExactTransformer
from codec.model.config import AnyConfig
from codec.model.transformer import TransformerConfig
from codec.quantization.quantized import Quantized


def exact_model(
    config: AnyConfig,
    matrices: Mapping[str, Quantized],
    vectors: Mapping[str, NDArray[np.floating]],
    device: torch.device | str = "cpu",
) -> ExactNetwork:
    """Make the exact model; arguments and errors as of `ExactModel` and `ExactTransformer`."""
    if isinstance(config, TransformerConfig):
        return ExactTransformer(config, matrices, vectors, device)
    return ExactModel(config, matrices, vectors, device)
