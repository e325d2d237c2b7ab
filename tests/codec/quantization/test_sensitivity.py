"""codec.quantization.sensitivity: reconstructions on the grid, errors that shrink with the unit, and matrices with
little in them.
"""

from dataclasses import replace

import numpy as np
import pytest

from codec.errors import FormatError
from codec.numerics.widths import LARGEST_WEIGHT
from codec.quantization.calibration import Moments
from codec.quantization.feedback import damped
from codec.quantization.quantized import Quantized, StepGrid
from codec.quantization.quantizers import Matrix
from codec.quantization.sensitivity import SensitivityGrid, row_rates, unit_for
from codec.quantization.trellis import transitions
from tests.support.helpers import parities


def quantized(grid: SensitivityGrid, weights: np.ndarray, moments: Moments) -> Quantized:
    return grid(Matrix("w", "matrix", weights, moments))


def identities(shape: tuple[int, int]) -> Moments:
    return Moments(np.eye(shape[1], dtype=np.float32), np.ones(shape[0], np.float32))


def measured(shape: tuple[int, int], seed: int = 0) -> Moments:
    """Correlated inputs of different sizes, and rows of different weight."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(200, shape[1])) @ rng.normal(size=(shape[1], shape[1])) * rng.lognormal(size=shape[1])
    return Moments((x.T @ x / 200).astype(np.float32), rng.lognormal(size=shape[0]).astype(np.float32))


def both_sides(shape: tuple[int, int]) -> Moments:
    return Moments(measured(shape).inputs, measured(shape[::-1], 1).inputs)


def gaussian(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def loss(weights: np.ndarray, found: Quantized, moments: Moments) -> float:
    e = (found.dequantize() - weights).astype(np.float64)
    outputs = np.diag(moments.outputs) if moments.outputs.ndim == 1 else damped(moments.outputs)
    return float(np.trace(outputs @ e @ damped(moments.inputs) @ e.T))


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (40, 70)])
@pytest.mark.parametrize("states", [0, 4, 8, 64])
def test_weights_are_rows_times_symbols_times_columns(shape, states):
    found = quantized(SensitivityGrid(0.125, states), gaussian(*shape), measured(shape))
    assert found.columns is not None
    assert found.grid is not None
    assert np.array_equal(found.dequantize(), found.symbols.astype(np.float32) * found.rows[:, None] * found.columns)
    assert np.array_equal(found.rows, found.grid.row_steps())
    assert np.array_equal(found.columns, found.grid.column_steps())
    assert found.grid.unit == (0.0625 if found.states else 0.125)
    assert found.symbols.dtype == np.int32
    if found.states:
        assert found.on is not None
        path = found.symbols[np.ix_(found.on.rows, found.on.columns)].T.ravel()
        assert np.array_equal(path & 1, parities(path, transitions(states)))


@pytest.mark.parametrize("states", [0, 8])
def test_identities_without_a_trellis_are_rounding(states):
    weights = gaussian(30, 20) * np.float32(0.01 if states else 1)
    found = quantized(SensitivityGrid(0.25, states), weights, identities(weights.shape))
    assert found.states == 0  # 0.01 is far below 2 bits
    assert np.array_equal(found.dequantize(), np.rint(weights / 0.25).astype(np.float32) * 0.25)


@pytest.mark.parametrize("states", [0, 8])
@pytest.mark.parametrize("moments", [identities, measured])
def test_a_finer_unit_costs_less(states, moments):
    """By the account of the calibration: unit^2 / 12 a weight, 0.17 bit less with a trellis."""
    weights, known = gaussian(300, 60), moments((300, 60))
    before = np.inf
    for unit in (0.4, 0.2, 0.1, 0.05, 0.025):
        found = quantized(SensitivityGrid(unit, states), weights, known)
        now = loss(weights, found, known)
        assert now < before / 3
        if found.states == states:
            expected = weights.size * unit**2 / 12 * (4**-0.17 if states else 1)
            assert now == pytest.approx(expected, rel=0.2)
        before = now


def test_what_each_part_is_worth():
    """Loss at equal rate, which goes as 4^-rate: every part of the strategy lowers it."""
    weights, known = gaussian(200, 100), both_sides((200, 100))
    losses = []
    for options in (
        {"states": 0, "feedback": False, "by_row": False, "by_column": False},
        {"states": 0, "feedback": False, "by_row": False},
        {"states": 0, "feedback": False},
        {"states": 0},
        {"states": 8},
        {"states": 256},
    ):
        found = quantized(SensitivityGrid(0.02, **options), weights, known)
        assert found.grid is not None
        assert len(set(found.grid.rows)) == 1 or options.get("by_row", True)
        assert len(set(found.grid.columns)) == 1 or options.get("by_column", True)
        rate = row_rates(weights, found.grid).mean() - bool(found.states)  # a trellis has half steps
        losses.append(loss(weights, found, known) * 4**rate)
    assert (np.diff(losses) < 0).all()
    assert losses[-1] < losses[0] / 4


def test_a_trellis_where_the_rate_is_high():
    weights = gaussian(64, 64)
    for unit, states in ((0.5, 256), (0.9, 256), (1.5, 256), (4.0, 0)):
        assert quantized(SensitivityGrid(unit), weights, identities((64, 64))).states == states


def test_what_is_nearly_zero_is_not_on_the_trellis():
    """Units that no text uses: their rows and columns have hardly any weights, and get none."""
    weights, known = gaussian(64, 80), both_sides((64, 80))
    weights[7] = 0
    weights[9] *= np.float32(1e-18)
    weights[:, 5] *= np.float32(1e-18)
    known.inputs[5] = known.inputs[:, 5] = 0
    known.outputs[9] = known.outputs[:, 9] = 0
    found = quantized(SensitivityGrid(0.1), weights, known)
    assert found.states == 256
    assert found.on is not None
    assert np.flatnonzero(~found.on.rows).tolist() == [7, 9]
    assert np.flatnonzero(~found.on.columns).tolist() == [5]
    assert not found.symbols[[7, 9]].any()
    assert np.abs(found.dequantize()[:, 5]).max() < np.abs(weights).max()
    visited = np.ix_(found.on.rows, found.on.columns)
    off = np.ones(weights.shape, bool)
    off[visited] = False
    assert not (found.symbols[off] & 1).any()
    assert (found.symbols[visited] & 1).any()


def test_rates_are_entropies():
    weights = gaussian(400, 500)
    grid = StepGrid(0.25, np.zeros(400, np.int32), np.zeros(500, np.int32))
    shares = np.unique(np.rint(weights / 0.25), return_counts=True)[1] / weights.size
    entropy = -(shares * np.log2(shares)).sum()
    assert row_rates(weights, grid).mean() == pytest.approx(entropy, abs=0.01)
    assert len(row_rates(np.zeros((400, 500), np.float32), grid)) == 0
    weights[:200] = 0
    assert len(row_rates(weights, grid)) == 200


@pytest.mark.parametrize("bits", [0.5, 3.0, 9.0])
def test_the_unit_for_a_rate(bits):
    """Two matrices of unlike scale and moments: the integers' entropy is about what was asked for."""
    pairs = [
        (gaussian(200, 100), identities((200, 100))),
        (50 * gaussian(100, 100), Moments(4 * np.eye(100, dtype=np.float32), np.full(100, 0.25, np.float32))),
    ]
    measured_rates = [
        (SensitivityGrid(1.0).rates(Matrix("w", "matrix", weights, moments)), 100) for weights, moments in pairs
    ]
    unit = unit_for(bits, measured_rates, 30_000)
    rates = []
    for weights, moments in pairs:
        matrix = quantized(SensitivityGrid(unit, states=0), weights, moments)
        rates.append(np.maximum(row_rates(weights, matrix.grid), 0).mean() * weights.size)
    assert sum(rates) / 30_000 == pytest.approx(bits, abs=0.05)
    assert unit_for(3.0, [(np.zeros(0), 2)], 6) == 1.0
    assert unit_for(3.0, [], 0) == 1.0


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0, 0), (1, 1), (5, 7)])
def test_little_or_nothing_to_quantize(shape):
    found = quantized(SensitivityGrid(0.1), np.zeros(shape, np.float32), identities(shape))
    assert found.symbols.shape == shape
    assert not found.symbols.any()
    assert found.states == 0


def test_no_information():
    zero = Moments(np.zeros((4, 4), np.float32), np.zeros(4, np.float32))
    found = quantized(SensitivityGrid(0.1), gaussian(4, 4), zero)
    assert np.isfinite(found.dequantize()).all()
    half = Moments(np.eye(4, dtype=np.float32), np.array([0, 0, 0, 1], np.float32))
    weights = gaussian(4, 4)
    assert np.abs(quantized(SensitivityGrid(0.1), weights, half).dequantize() - weights).max() < 1
    impossible = 5 - 4 * np.eye(4, dtype=np.float32)
    with pytest.raises(FormatError, match="not positive definite"):
        quantized(SensitivityGrid(0.1), weights, Moments(impossible, np.ones(4, np.float32)))


def test_integers_stay_within_what_the_coder_takes():
    """However fine the unit, and one weight a million times as large as the others."""
    weights = gaussian(30, 30)
    weights[3, 4] = 1e6
    for states in (0, 8):
        found = quantized(SensitivityGrid(1e-12, states), weights, identities((30, 30)))
        assert 1 << 19 < np.abs(found.symbols).max() <= 1 << 22
        assert found.dequantize()[3, 4] == pytest.approx(1e6)


def relative(weights: np.ndarray) -> Matrix:
    scale = float(np.sqrt(np.square(weights, dtype=np.float64).mean()))
    return Matrix("w", "matrix", weights.astype(np.float32), identities(weights.shape), scale, True)


def test_errors_are_relative_to_the_scale():
    weights = gaussian(60, 60)
    for scale in (2.0**-60, 2.0**40):
        found, plain = (SensitivityGrid(0.3)(relative(w)) for w in (weights * np.float32(scale), weights))
        assert np.array_equal(found.symbols, plain.symbols)


@pytest.mark.parametrize(("unit", "least"), [(1.2, 0.005), (2.0, 0.02)])
def test_coarse_steps_shrink(unit, least):
    """The factor of least squared error, which takes back part of the error at low rates."""
    weights = gaussian(200, 200)
    shrunk = SensitivityGrid(unit)(relative(weights))
    plain = SensitivityGrid(unit)(replace(relative(weights), relative=False))
    assert np.array_equal(shrunk.symbols, plain.symbols)
    errors = [np.square(q.dequantize() - weights).sum() for q in (shrunk, plain)]
    assert errors[0] < (1 - least) * errors[1]
    for factor in (0.99, 1.01):
        assert np.square(factor * shrunk.dequantize() - weights).sum() > errors[0]


def massive(shape: tuple[int, int], axis: int, factor: float) -> Moments:
    """Moments of which one column (axis 1) or one row counts `factor` times as much as the others."""
    inputs, outputs = np.ones(shape[1]), np.ones(shape[0])
    (outputs, inputs)[axis][5] = factor
    return Moments(np.diag(inputs).astype(np.float32), outputs.astype(np.float32))


@pytest.mark.parametrize("states", [0, 256])
@pytest.mark.parametrize(("axis", "factor", "unit"), [(0, 1e3, 1e-3), (1, 1e9, 1.0)])
def test_integers_that_kernels_multiply_stay_within_their_bound(axis, factor, unit, states):
    """One column that reads very large activations gets larger steps; all other steps stay what they are."""
    weights, moments, grid = gaussian(40, 70), massive((40, 70), axis, factor), SensitivityGrid(unit, states)
    free = quantized(grid, weights, moments)
    found = grid(Matrix("w", "matrix", weights, moments, limit=LARGEST_WEIGHT))
    assert np.abs(free.symbols).max() > LARGEST_WEIGHT >= np.abs(found.symbols).max() > LARGEST_WEIGHT / 8
    changed = [np.flatnonzero(a != b).tolist() for a, b in ((found.rows, free.rows), (found.columns, free.columns))]
    assert changed == ([[5], []] if axis == 0 else [[], [5]])
    others = np.delete(np.arange(70 if axis else 40), 5)
    error, before = (np.take(m.dequantize() - weights, others, axis) for m in (found, free))
    assert np.square(error).mean() < 1.1 * np.square(before).mean()


def test_integers_at_a_rate_beyond_the_kernels():
    weights = gaussian(40, 70)
    for scale in (1.0, 1e-30, 1e30):
        matrix = Matrix("w", "matrix", weights * np.float32(scale), identities((40, 70)), scale, True, LARGEST_WEIGHT)
        found = SensitivityGrid(2.0**-20)(matrix)
        assert np.abs(found.symbols).max() <= LARGEST_WEIGHT
        assert np.abs(found.dequantize() / np.float32(scale) - weights).max() < 1e-3
