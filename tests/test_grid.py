"""codec.grid: reconstructions on the grid, errors that shrink with the unit, and matrices with little in them."""

import numpy as np
import pytest

from codec.calibration import Moments
from codec.errors import FormatError
from codec.feedback import damped
from codec.grid import SensitivityGrid, row_rates, unit_for
from codec.quantized import Quantized, StepGrid
from codec.trellis import parities, transitions


def identities(shape: tuple[int, int]) -> Moments:
    return Moments(np.eye(shape[1], dtype=np.float32), np.ones(shape[0], np.float32))


def measured(shape: tuple[int, int], seed: int = 0) -> Moments:
    """Correlated inputs of different sizes, and rows of different weight."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(200, shape[1])) @ rng.normal(size=(shape[1], shape[1])) * rng.lognormal(size=shape[1])
    return Moments((x.T @ x / 200).astype(np.float32), rng.lognormal(size=shape[0]).astype(np.float32))


def gaussian(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def loss(weights: np.ndarray, found: Quantized, moments: Moments) -> float:
    e = (found.dequantize() - weights).astype(np.float64)
    return float(np.einsum("r,ri,ij,rj->", moments.outputs, e, damped(moments.inputs), e))


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (40, 70)])
@pytest.mark.parametrize("states", [0, 4, 8, 64])
def test_weights_are_rows_times_symbols_times_columns(shape, states):
    found = SensitivityGrid(0.125, states)(gaussian(*shape), measured(shape))
    assert found.columns is not None
    assert found.grid is not None
    assert np.array_equal(found.dequantize(), found.symbols.astype(np.float32) * found.rows[:, None] * found.columns)
    assert np.array_equal(found.rows, found.grid.row_steps())
    assert np.array_equal(found.columns, found.grid.column_steps())
    assert found.grid.unit == (0.0625 if found.states else 0.125)
    assert found.symbols.dtype == np.int32
    if found.states:
        path = np.ascontiguousarray(found.symbols.T).ravel()
        assert np.array_equal(path & 1, parities(path, transitions(states)))


@pytest.mark.parametrize("states", [0, 8])
def test_identities_without_a_trellis_are_rounding(states):
    weights = gaussian(30, 20) * np.float32(0.01 if states else 1)
    found = SensitivityGrid(0.25, states)(weights, identities(weights.shape))
    assert found.states == 0  # 0.01 is far below 2 bits
    assert np.array_equal(found.dequantize(), np.rint(weights / 0.25).astype(np.float32) * 0.25)


@pytest.mark.parametrize("states", [0, 8])
@pytest.mark.parametrize("moments", [identities, measured])
def test_a_finer_unit_costs_less(states, moments):
    """By the account of the calibration: unit^2 / 12 a weight, 0.17 bit less with a trellis."""
    weights, known = gaussian(300, 60), moments((300, 60))
    before = np.inf
    for unit in (0.4, 0.2, 0.1, 0.05, 0.025):
        found = SensitivityGrid(unit, states)(weights, known)
        now = loss(weights, found, known)
        assert now < before / 3
        if found.states == states:
            expected = weights.size * unit**2 / 12 * (4**-0.17 if states else 1)
            assert now == pytest.approx(expected, rel=0.2)
        before = now


def test_a_trellis_where_the_rate_is_high():
    weights = gaussian(64, 64)
    for unit, states in ((0.5, 8), (0.9, 8), (1.2, 0), (4.0, 0)):
        assert SensitivityGrid(unit)(weights, identities((64, 64))).states == states
    weights[7] = 0  # which a trellis would fill
    found = SensitivityGrid(0.1)(weights, identities((64, 64)))
    assert found.states == 0
    assert not found.symbols[7].any()


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
    unit = unit_for(bits, pairs)
    rates = []
    for weights, moments in pairs:
        matrix = SensitivityGrid(unit, states=0)(weights, moments)
        rates.append(np.maximum(row_rates(weights, matrix.grid), 0).mean() * weights.size)
    assert sum(rates) / 30_000 == pytest.approx(bits, abs=0.05)
    assert unit_for(3.0, [(np.zeros((3, 2), np.float32), identities((3, 2)))]) == 1.0


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0, 0), (1, 1), (5, 7)])
def test_little_or_nothing_to_quantize(shape):
    found = SensitivityGrid(0.1)(np.zeros(shape, np.float32), identities(shape))
    assert found.symbols.shape == shape
    assert not found.symbols.any()
    assert found.states == 0


def test_no_information():
    zero = Moments(np.zeros((4, 4), np.float32), np.zeros(4, np.float32))
    found = SensitivityGrid(0.1)(gaussian(4, 4), zero)
    assert np.isfinite(found.dequantize()).all()
    half = Moments(np.eye(4, dtype=np.float32), np.array([0, 0, 0, 1], np.float32))
    weights = gaussian(4, 4)
    assert np.abs(SensitivityGrid(0.1)(weights, half).dequantize() - weights).max() < 1
    impossible = 5 - 4 * np.eye(4, dtype=np.float32)
    with pytest.raises(FormatError, match="not positive definite"):
        SensitivityGrid(0.1)(weights, Moments(impossible, np.ones(4, np.float32)))


def test_integers_beyond_int32_do_not_wrap():
    for states in (0, 8):
        found = SensitivityGrid(1e-12, states)(gaussian(3, 3), identities((3, 3)))
        assert np.abs(found.symbols).min() >= 1 << 29
