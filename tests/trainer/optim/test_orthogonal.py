"""Polar factors against the singular value decomposition; that no quintic is better than those of Polar Express."""

import numpy as np
import pytest
import torch

from trainer.optim.orthogonal import (
    LOWEST,
    SAFETY,
    Quintic,
    best_quintic,
    newton_schulz,
    orthogonalise,
    polar_express,
    rows_levelled,
    value,
)

NEWTON, EXPRESS = newton_schulz(), polar_express()


@pytest.mark.parametrize(("quintics", "low", "high"), [(NEWTON, 0.6, 1.3), (EXPRESS, 0.85, 1.15)])
@pytest.mark.parametrize("shape", [(8, 8), (4, 12), (12, 4)])
def test_orthogonalise_keeps_singular_vectors_and_levels_singular_values(
    shape: tuple[int, int], quintics: list[Quintic], low: float, high: float
) -> None:
    torch.manual_seed(0)
    u, _, v = torch.linalg.svd(torch.randn(3, *shape), full_matrices=False)
    stack = u * torch.linspace(0.05, 1.0, min(shape)) @ v
    found = u.mT @ orthogonalise(stack, quintics) @ v.mT
    diagonal = found.diagonal(dim1=-2, dim2=-1)
    assert (found - torch.diag_embed(diagonal)).abs().max() < 1e-4
    assert diagonal.min() > low and diagonal.max() < high


def test_orthogonalise_treats_the_matrices_of_a_stack_alone() -> None:
    stack = torch.randn(4, 6, 10, generator=torch.Generator().manual_seed(1))
    alone = torch.cat([orthogonalise(matrix[None], NEWTON) for matrix in stack])
    torch.testing.assert_close(orthogonalise(stack, NEWTON), alone)


def test_orthogonalise_ignores_scale_and_leaves_zero_alone() -> None:
    matrix = torch.randn(1, 5, 5, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(orthogonalise(matrix, NEWTON), orthogonalise(1000 * matrix, NEWTON))
    assert not orthogonalise(torch.zeros(1, 5, 5), NEWTON).any()


@pytest.mark.parametrize(("low", "high"), [(1e-3, 1.0), (0.05, 1.9), (0.4, 1.6), (0.9, 1.1)])
def test_the_best_quintic_has_its_greatest_error_four_times_with_alternating_signs(low: float, high: float) -> None:
    """By Chebyshev's theorem no odd quintic does better; and none of many near it does."""
    best = best_quintic(low, high)
    x = np.linspace(low, high, 200_001)
    errors = value(best, x) - 1
    greatest = np.abs(errors).max()
    signs = np.sign(errors[np.abs(errors) > greatest * (1 - 1e-6)])
    assert 1 + np.count_nonzero(signs[1:] != signs[:-1]) == 4
    rng, points = np.random.default_rng(0), x[::100]
    for _ in range(2000):
        a, b, c = np.array(best) * (1 + rng.normal(size=3) * 10.0 ** rng.uniform(-5, -1))
        assert np.abs(value((a, b, c), points) - 1).max() > greatest * (1 - 1e-3)


def test_polar_express_is_nearer_to_1_than_newton_schulz_wherever_it_aims() -> None:
    x = np.geomspace(LOWEST, 1, 10_000)
    results = []
    for quintics in (EXPRESS, NEWTON):
        y = x
        for quintic in quintics:
            y = value(quintic, y)
        results.append(np.abs(y - 1).max())
    assert results[0] < 0.15 and results[1] > 0.45


def test_each_step_begins_where_the_one_before_ended() -> None:
    low, high = LOWEST, 1.0
    for step, (a, b, c) in enumerate(EXPRESS):
        safety = SAFETY if step < len(EXPRESS) - 1 else 1.0
        expected = best_quintic(low, high)
        assert (a * safety, b * safety**3, c * safety**5) == pytest.approx(expected)
        values = value(expected, np.linspace(low, high, 10_001))
        low, high = values.min(), values.max()
    assert high - low < 0.3


def test_levelled_rows_have_length_1() -> None:
    stack = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(2))
    stack[1, 2] = 0
    found = rows_levelled(stack)
    lengths = found.norm(dim=-1)
    torch.testing.assert_close(lengths, torch.tensor([[1.0, 1, 1], [1, 1, 0]]))
    torch.testing.assert_close(found[0] * stack[0].norm(dim=-1, keepdim=True), stack[0])
