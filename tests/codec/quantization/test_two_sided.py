"""codec.quantization.two_sided: against the definition on small matrices, across tiles, and what it is for."""

import numpy as np
import pytest

from codec.quantization.feedback import Codebook, quantize_columns, upper_factor
from codec.quantization.trellis import transitions
from codec.quantization.two_sided import quantize_diagonals
from tests.support.helpers import parities


def moment(size: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(3 * size, size)) @ (np.eye(size) + 0.5 * rng.normal(size=(size, size)))
    return x.T @ x / len(x)


def case(height: int, width: int, seed: int = 0) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(seed)
    weights = rng.normal(size=(height, width))
    return weights, moment(width, seed + 1), moment(height, seed + 2), rng.uniform(0.2, 0.4, height), np.ones(width)


def textbook(weights, inputs, outputs, rows, columns):
    """Every weight at the value that its own error would have to cancel, by the definition of S."""
    v, u = upper_factor(inputs), upper_factor(outputs)
    symbols, errors = np.zeros(weights.shape, np.int32), np.zeros(weights.shape)
    for diagonal in range(sum(weights.shape) - 1):
        for r in range(weights.shape[0]):
            j = diagonal - r
            if 0 <= j < weights.shape[1]:
                owed = (u.T @ errors @ v)[r, j] / (u[r, r] * v[j, j])
                symbols[r, j] = np.rint((weights[r, j] - owed) / (rows[r] * columns[j]))
                errors[r, j] = symbols[r, j] * rows[r] * columns[j] - weights[r, j]
    return symbols


def loss(symbols, weights, inputs, outputs, rows, columns) -> float:
    e = symbols * rows[:, None] * columns - weights
    return float(np.trace(outputs @ e @ inputs @ e.T))


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1), (6, 9), (9, 6)])
def test_against_the_definition(shape):
    weights, inputs, outputs, rows, columns = case(*shape)
    found = quantize_diagonals(weights, upper_factor(inputs), upper_factor(outputs), Codebook(rows, columns))
    assert np.array_equal(found, textbook(weights, inputs, outputs, rows, columns))


@pytest.mark.parametrize("shape", [(65, 40), (40, 65), (128, 128), (130, 193)])
def test_tiles(shape):
    """Across tiles the sums are made in another order: a few roundings may differ, the loss must not."""
    weights, inputs, outputs, rows, columns = case(*shape)
    found = quantize_diagonals(weights, upper_factor(inputs), upper_factor(outputs), Codebook(rows, columns))
    expected = textbook(weights, inputs, outputs, rows, columns) if weights.size < 3000 else None
    v, u = upper_factor(inputs), upper_factor(outputs)
    s = u.T @ (found * rows[:, None] * columns - weights) @ v
    assert (np.abs(s) <= 0.5 * (rows * np.diag(u))[:, None] * (columns * np.diag(v)) * (1 + 1e-9)).all()
    if expected is not None:
        assert (found != expected).mean() < 0.001


def test_it_beats_one_side_and_a_trellis_beats_it():
    weights, inputs, outputs, rows, columns = case(200, 100)
    rows = 0.1 / np.diag(upper_factor(outputs))
    columns = 1 / np.diag(upper_factor(inputs))
    factors = upper_factor(inputs), upper_factor(outputs)
    both = loss(quantize_diagonals(weights, *factors, Codebook(rows, columns)), weights, inputs, outputs, rows, columns)
    one = loss(quantize_columns(weights, factors[0], Codebook(rows, columns)), weights, inputs, outputs, rows, columns)
    path = quantize_diagonals(weights, *factors, Codebook(rows / 2, columns, 8))
    with_trellis = loss(path, weights, inputs, outputs, rows / 2, columns)
    assert both == pytest.approx(weights.size * 0.1**2 / 12, rel=0.05)
    assert both < 0.7 * one
    assert with_trellis < 0.82 * both


def test_the_trellis_runs_down_the_anti_diagonals():
    weights, inputs, outputs, rows, columns = case(70, 30)
    found = quantize_diagonals(weights, upper_factor(inputs), upper_factor(outputs), Codebook(rows, columns, 64))
    path = [found[r, d - r] for d in range(99) for r in range(70) if 0 <= d - r < 30]
    assert np.array_equal(np.array(path) & 1, parities(np.array(path, np.int32), transitions(64)))
