"""Whole distributions on a GPU are the reference's: of chunks, and of single tokens on slots that begin anew."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from codec.backends.cuda.backend import CudaBackend
from codec.exact.reference import TorchBackend
from tests.support.helpers import EVERY_OPTION, PLAIN, tiny_pack, whole_sums

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def check(model: Any, fast_backend: type[CudaBackend], lengths: list[int], window: int, steps: int = 7) -> None:
    """Documents of so many tokens, the longest first, in chunks of 64, and their first `steps` one by one."""
    generator, size = np.random.default_rng(2), model.config.vocab_size
    order = generator.permutation(size)
    documents = [generator.integers(0, size, length) for length in lengths]
    found = []
    for backend in (fast_backend(model), TorchBackend(model)):
        past, parts = backend.past(len(documents), window), []
        for at in range(0, lengths[0], 64):
            chunk = [document[at : at + 64] for document in documents if len(document) > at]
            parts.append(whole_sums(backend, chunk, order, past))
        found.append(parts)
    for mine, reference in zip(*found, strict=True):
        assert np.array_equal(mine, reference)
    fast, slow = (b.distributions(2, window, order) for b in (fast_backend(model), TorchBackend(model)))
    for n in range(steps):
        slots = np.arange(2) if n < 2 or n > 4 else np.array([1])  # slot 0 rests, and begins anew
        positions = np.array([n - 5 if slot == 0 and n > 4 else n for slot in slots])
        tokens, previous = generator.integers(0, size, (2, len(slots)))
        mine, reference = (d.step(slots, tokens, previous, positions) for d in (fast, slow))
        assert np.array_equal(mine, reference)


@pytest.mark.long
def test_a_plain_model():
    check(tiny_pack(replace(PLAIN, num_layers=1, window=64)).exact(DEVICE), CudaBackend, [70, 5], window=64)


@pytest.mark.long
def test_every_option():
    check(tiny_pack(replace(EVERY_OPTION, window=80)).exact(DEVICE), CudaBackend, [130, 64], window=64, steps=70)
