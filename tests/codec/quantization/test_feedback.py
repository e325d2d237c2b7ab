"""codec.quantization.feedback: the factorisation, the loss it promises, and moments without full rank."""

import numpy as np
import pytest

from codec.errors import FormatError
from codec.quantization.feedback import DAMPING, Codebook, damped, pivots, quantize_columns, upper_factor
from codec.quantization.quantized import OnTrellis
from codec.quantization.trellis import predecessors, search


def moment(size: int, rank: int, seed: int = 0) -> np.ndarray:
    """Of inputs that are mixtures of `rank` sources."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(4 * size, rank)) @ rng.normal(size=(rank, size))
    return x.T @ x / len(x)


def rounded(weights: np.ndarray, factor: np.ndarray, step: float) -> np.ndarray:
    """The reconstruction with feedback, the steps in the rows."""
    rows, columns = np.full(len(weights), step), np.ones(weights.shape[1])
    return quantize_columns(weights, factor, Codebook(rows, columns)) * step


@pytest.mark.parametrize("size", [1, 2, 7, 64, 65, 150])
def test_factor(size):
    h = damped(moment(size, size))
    v = upper_factor(h)
    assert np.allclose(v @ v.T, h)
    assert np.array_equal(v, np.triu(v))
    assert (np.diag(v) > 0).all()
    assert np.array_equal(pivots(v), np.diag(v) ** 2)
    assert np.array_equal(upper_factor(np.diag(h)), np.sqrt(np.diag(h)))


@pytest.mark.parametrize("size", [1, 2, 5, 63, 64, 65, 130])
@pytest.mark.parametrize("rank", [1, 3, 200])
def test_loss_is_that_of_the_columns_own_errors(size, rank):
    h, weights = damped(moment(size, rank)), np.random.default_rng(1).normal(size=(9, size))
    v = upper_factor(h)
    found = rounded(weights, v, 0.3)
    e = found - weights
    targets = np.empty_like(weights)  # the definition, one by one
    for j in range(size):
        targets[:, j] = weights[:, j] - sum((e[:, i] * v[i, j] / v[j, j] for i in range(j)), np.zeros(9))
    assert np.abs(found - targets).max() <= 0.15 * (1 + 1e-9)
    own = found - targets
    assert np.einsum("ri,ij,rj->", e, h, e) == pytest.approx((np.diag(v) ** 2 * own**2).sum())


@pytest.mark.parametrize("rank", [2, 8, 40])
@pytest.mark.parametrize("seed", range(5))
def test_feedback_beats_rounding_where_inputs_correlate(rank, seed):
    h, weights = damped(moment(40, rank, seed)), np.random.default_rng(seed).normal(size=(50, 40))
    found = rounded(weights, upper_factor(h), 0.25)
    feedback, plain = found - weights, np.rint(weights / 0.25) * 0.25 - weights
    assert np.einsum("ri,ij,rj->", feedback, h, feedback) < np.einsum("ri,ij,rj->", plain, h, plain)


def test_independent_inputs_are_rounded():
    weights = np.random.default_rng(0).normal(size=(5, 70))
    plain = np.rint(weights / 0.5) * 0.5
    assert np.array_equal(rounded(weights, upper_factor(np.diag(np.arange(1.0, 71))), 0.5), plain)
    assert np.array_equal(rounded(weights, upper_factor(np.arange(1.0, 71)), 0.5), plain)


def test_integers_are_clipped_and_their_errors_fed_back():
    h, weights = damped(moment(9, 9)), np.random.default_rng(1).normal(size=(4, 9))
    found = quantize_columns(weights, upper_factor(h), Codebook(np.full(4, 0.1), np.ones(9), limit=7))
    assert np.abs(found).max() == 7
    v, e = upper_factor(h), found * 0.1 - weights
    for j in range(9):
        target = weights[:, j] - sum((e[:, i] * v[i, j] / v[j, j] for i in range(j)), np.zeros(4))
        assert np.array_equal(found[:, j], np.rint(target / 0.1).clip(-7, 7))


@pytest.mark.parametrize("states", [4, 64])
def test_with_a_trellis(states):
    """Each column's targets, found again from the errors of those before it, are searched as one path."""
    h, weights = damped(moment(70, 70)), np.random.default_rng(1).normal(size=(30, 70))
    v, rows, columns = upper_factor(h), np.linspace(0.1, 0.2, 30), np.linspace(1, 2, 70)
    found = quantize_columns(weights, v, Codebook(rows, columns, states))
    e, state = found * rows[:, None] * columns - weights, 0
    for j in range(70):
        target = weights[:, j] - sum((e[:, i] * v[i, j] / v[j, j] for i in range(j)), np.zeros(30))
        path, state = search(target / rows / columns[j], predecessors(states), state)
        assert np.array_equal(found[:, j], path)


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
    for height, width in ((0, 3), (3, 0), (0, 0)):
        assert rounded(np.zeros((height, width)), np.eye(width), 1.0).shape == (height, width)
    assert np.array_equal(damped(np.array([1.0, 3.0])), [1 + 2 * DAMPING, 3 + 2 * DAMPING])
    assert np.array_equal(damped(np.zeros(2)), [1, 1])


def test_no_moment():
    with pytest.raises(FormatError, match="not positive definite; calibrate again"):
        upper_factor(damped(np.array([[1.0, 5.0], [5.0, 1.0]])))
    with pytest.raises(FormatError, match="not positive definite; calibrate again"):
        upper_factor(np.array([1.0, -1.0]))


def test_what_is_not_on_the_trellis_has_whole_steps():
    h, weights = damped(moment(20, 20)), np.random.default_rng(1).normal(size=(30, 20))
    v, rows, columns = upper_factor(h), np.full(30, 0.3), np.ones(20)
    on = OnTrellis(np.arange(30) % 3 > 0, np.arange(20) != 4)
    found = quantize_columns(weights, v, Codebook(rows, columns, 8, on))
    e, state = found * 0.3 - weights, 0
    for j in range(20):
        target = (weights[:, j] - sum((e[:, i] * v[i, j] / v[j, j] for i in range(j)), np.zeros(30))) / 0.3
        visited = on.rows & on.columns[j]
        path, state = search(target[visited], predecessors(8), state)
        assert np.array_equal(found[visited, j], path)
        assert np.array_equal(found[~visited, j], 2 * np.rint(target[~visited] / 2))
