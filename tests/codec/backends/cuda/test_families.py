"""codec.backends.cuda.families: the reference's integers, by Triton's interpreter where there is no GPU."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from codec.backends.agree import TRIALS, agree
from codec.backends.cuda.families.network import CudaTransformer
from codec.errors import UnsupportedError
from codec.exact.reference import TorchBackend
from tests.support.families import FAMILIES, LLAMA, family_pack

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def check_scores(config, lengths):
    model, generator = family_pack(config).exact(DEVICE), np.random.default_rng(0)
    inputs, targets = ([generator.integers(0, 400, n) for n in lengths] for _ in range(2))
    found, expected = CudaTransformer(model).score(inputs, targets), TorchBackend(model).score(inputs, targets)
    assert np.array_equal(found[:2], expected[:2])
    assert np.abs(found[2] - expected[2]).max() < 1e-9


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_layer_scores_as_the_reference_does(name):
    check_scores(replace(FAMILIES[name], num_layers=1), [5, 1])


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family(name):
    check_scores(FAMILIES[name], [33, 1])
    model = family_pack(replace(FAMILIES[name], num_layers=1)).exact(DEVICE)
    past, generator = [b.past(1, 64) for b in (CudaTransformer(model), TorchBackend(model))], np.random.default_rng(1)
    for length in (64, 64, 7):
        row, after = generator.integers(0, 400, (2, length))
        backends = (CudaTransformer(model), TorchBackend(model))
        found = [b.score([row], [after], past=p)[:2] for b, p in zip(backends, past, strict=True)]
        assert np.array_equal(*found)


@pytest.mark.gpu
@pytest.mark.parametrize("name", FAMILIES)
def test_windows_documents_and_slots(name):
    model = family_pack(replace(FAMILIES[name], window=192)).exact(DEVICE)
    assert agree(CudaTransformer(model), TorchBackend(model), model.config, TRIALS["cuda"])


def test_what_the_kernels_do_not_know():
    model = family_pack(LLAMA).exact()
    with pytest.raises(UnsupportedError, match="recall"):
        CudaTransformer(model, recall=object())
