"""codec.feedback: the factorisation, the loss it promises, and moments without full rank."""

import numpy as np
import pytest

from codec.errors import FormatError
from codec.feedback import DAMPING, damped, quantize_columns, upper_factor


def moment(size: int, rank: int, seed: int = 0) -> np.ndarray:
    """Of inputs that are mixtures of `rank` sources."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(4 * size, rank)) @ rng.normal(size=(rank, size))
    return x.T @ x / len(x)


def rounded(weights: np.ndarray, factor: np.ndarray, step: float) -> tuple[np.ndarray, np.ndarray]:
    """The reconstruction with feedback, and each column's own error."""
    own = np.zeros_like(weights)

    def column(j: int, target: np.ndarray) -> np.ndarray:
        found = np.rint(target / step) * step
        own[:, j] = found - target
        return found

    return quantize_columns(weights, factor, column), own


@pytest.mark.parametrize("size", [1, 2, 7, 64, 65, 150])
def test_factor(size):
    h = damped(moment(size, size))
    v = upper_factor(h)
    assert np.allclose(v @ v.T, h)
    assert np.array_equal(v, np.triu(v))
    assert (np.diag(v) > 0).all()


@pytest.mark.parametrize("size", [1, 2, 5, 63, 64, 65, 130])
@pytest.mark.parametrize("rank", [1, 3, 200])
def test_loss_is_that_of_the_columns_own_errors(size, rank):
    h, weights = damped(moment(size, rank)), np.random.default_rng(1).normal(size=(9, size))
    v = upper_factor(h)
    found, own = rounded(weights, v, 0.3)
    e = found - weights
    assert np.allclose(found, np.rint(found / 0.3) * 0.3)
    assert np.einsum("ri,ij,rj->", e, h, e) == pytest.approx((np.diag(v) ** 2 * own**2).sum())
    targets = np.empty_like(weights)  # the definition, one by one
    for j in range(size):
        targets[:, j] = weights[:, j] - sum((e[:, i] * v[i, j] / v[j, j] for i in range(j)), np.zeros(9))
    assert np.allclose(found - targets, own)


@pytest.mark.parametrize("rank", [2, 8, 40])
@pytest.mark.parametrize("seed", range(5))
def test_feedback_beats_rounding_where_inputs_correlate(rank, seed):
    h, weights = damped(moment(40, rank, seed)), np.random.default_rng(seed).normal(size=(50, 40))
    found, _ = rounded(weights, upper_factor(h), 0.25)
    feedback, plain = found - weights, np.rint(weights / 0.25) * 0.25 - weights
    assert np.einsum("ri,ij,rj->", feedback, h, feedback) < np.einsum("ri,ij,rj->", plain, h, plain)


def test_independent_inputs_are_rounded():
    weights = np.random.default_rng(0).normal(size=(5, 70))
    found, _ = rounded(weights, upper_factor(np.diag(np.arange(1.0, 71))), 0.5)
    assert np.allclose(found, np.rint(weights / 0.5) * 0.5)


def test_moments_without_full_rank():
    assert np.array_equal(damped(np.zeros((3, 3))), np.eye(3))
    assert damped(np.zeros((0, 0))).shape == upper_factor(damped(np.zeros((0, 0)))).shape == (0, 0)
    dead = moment(6, 6)
    dead[2] = dead[:, 2] = 0
    for h in (moment(6, 1), dead, np.ones((6, 6)), np.float32(1e-30) * np.ones((6, 6), np.float32)):
        found = damped(h)
        assert np.allclose(found - h, DAMPING * np.trace(h) / 6 * np.eye(6), rtol=1e-6)
        assert np.isfinite(upper_factor(found)).all()
    assert upper_factor(damped(np.array([[4.0]]))) ** 2 == pytest.approx(4 * (1 + DAMPING))
    assert quantize_columns(np.zeros((0, 3)), np.eye(3), lambda j, t: t).shape == (0, 3)
    assert quantize_columns(np.zeros((3, 0)), np.zeros((0, 0)), lambda j, t: t).shape == (3, 0)


def test_no_moment():
    with pytest.raises(FormatError, match="not positive definite; calibrate again"):
        upper_factor(damped(np.array([[1.0, 5.0], [5.0, 1.0]])))
