"""codec.backends.cuda.families: the reference's integers, by Triton's interpreter where there is no GPU."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from codec.backends.agree import TRIALS, agree
from codec.backends.cuda.families.network import CudaTransformer
from codec.exact.reference import TorchBackend
from tests.codec.backends.cuda.test_distributions import check as check_sums
from tests.codec.exact.test_recall import TABLES
from tests.support.families import FAMILIES, LLAMA, family_pack

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def check_scores(config, lengths):
    model, generator = family_pack(config).exact(DEVICE), np.random.default_rng(0)
    inputs, targets = ([generator.integers(0, 400, n) for n in lengths] for _ in range(2))
    found, expected = CudaTransformer(model).score(inputs, targets), TorchBackend(model).score(inputs, targets)
    assert np.array_equal(found[:2], expected[:2])
    assert np.abs(found[2] - expected[2]).max() < 1e-9


@pytest.mark.parametrize("name", ["llama", pytest.param("gpt2", marks=pytest.mark.long)])
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


@pytest.mark.long
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_recall(name):
    """Levels that the match model has raised: few different tokens, so that each has followed others."""
    model = family_pack(replace(FAMILIES[name], num_layers=1)).exact(DEVICE)
    inputs = [np.random.default_rng(3).integers(0, 4, n) for n in (14, 3)]
    targets = [np.roll(row, -1) for row in inputs]
    found, expected, plain = (
        backend.score(inputs, targets)[:2]
        for backend in (CudaTransformer(model, TABLES), TorchBackend(model, TABLES), TorchBackend(model))
    )
    assert np.array_equal(found, expected)
    assert not np.array_equal(found, plain)


@pytest.mark.gpu
@pytest.mark.parametrize("name", FAMILIES)
def test_recall_of_windows_documents_and_lanes(name):
    model = family_pack(replace(FAMILIES[name], window=192)).exact(DEVICE)
    assert agree(CudaTransformer(model, TABLES), TorchBackend(model, TABLES), model.config, TRIALS["cuda"])


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("window", [64, 320])
def test_sums_of_solid_blocks(window):
    """Chunks of lanes, of which none has parts of two windows, are those of the reference; so are single tokens."""
    check_sums(family_pack(replace(LLAMA, num_layers=1, window=window)).exact(DEVICE), CudaTransformer, [70, 5], window)
