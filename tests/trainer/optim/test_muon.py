"""Muon against its formula, matrix by matrix, and its state between runs of different numbers of processes."""

import math

import pytest
import torch

from trainer.distributed import World
from trainer.optim.muon import METHODS, Muon
from trainer.optim.orthogonal import orthogonalise, rows_levelled
from trainer.recipe import ORTHOGONAL


def polar(matrix: torch.Tensor) -> torch.Tensor:
    """U V^T of a matrix U S V^T."""
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    return u @ v


def shares(muon: Muon) -> list[torch.Tensor]:
    return [share.wait() for share in muon.reduce()]


def test_recipes_know_the_methods() -> None:
    assert tuple(METHODS) == ORTHOGONAL


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("level_rows", [False, True])
def test_muon_steps_as_its_formula_says(method: str, level_rows: bool) -> None:
    quintics = METHODS[method]()
    levelled = rows_levelled if level_rows else torch.clone
    torch.manual_seed(3)
    weights = [torch.nn.Parameter(torch.randn(*shape)) for shape in ((12, 4), (4, 4), (12, 4))]
    muon = Muon(weights, World(), method, level_rows)
    buffers = [torch.zeros_like(weight) for weight in weights]
    for _ in range(3):
        expected = []
        for weight, buffer in zip(weights, buffers, strict=True):
            weight.grad = torch.randn_like(weight)
            buffer.mul_(0.9).add_(weight.grad)
            update = orthogonalise(levelled((weight.grad + 0.9 * buffer)[None]), quintics)[0]
            reach = 0.1 * math.sqrt(max(1.0, weight.shape[0] / weight.shape[1]))
            expected.append(weight.detach() * (1 - 0.1 * 0.5) - reach * update)
        muon.step(shares(muon), lr=0.1, momentum=0.9, weight_decay=0.5)
        for weight, value in zip(weights, expected, strict=True):
            torch.testing.assert_close(weight.detach(), value)


def test_muon_finds_the_polar_factor_that_a_linear_loss_wants() -> None:
    torch.manual_seed(4)
    target = torch.randn(8, 8)
    weight = torch.nn.Parameter(torch.zeros(8, 8))
    muon = Muon([weight], World())
    weight.grad = -target
    muon.step(shares(muon), lr=1.0, momentum=0.0, weight_decay=0.0)
    cosine = torch.nn.functional.cosine_similarity(weight.flatten(), polar(target).flatten(), dim=0)
    assert cosine > 0.95


def test_momenta_reach_a_run_of_any_number_of_processes() -> None:
    weights = [torch.nn.Parameter(torch.randn(3, 2)) for _ in range(5)]
    alone = Muon(weights, World())
    alone.momenta[0].normal_()
    for size in (1, 2, 4):
        parts = [Muon(weights, World(rank, size)) for rank in range(size)]
        for part in parts:
            part.load_state(alone.state())
        joined = torch.cat([part.momenta[0] for part in parts])
        assert torch.equal(joined[:5], alone.momenta[0]) and not joined[5:].any()
    with pytest.raises(ValueError, match="5 matrices"):
        alone.load_state([torch.zeros(4, 3, 2)])
