"""codec.quantization.quantizers and codec.quantization.quantized: errors of half a step, steps that survive their two
bytes, odd rows.
"""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from codec.quantization.calibration import Moments
from codec.quantization.quantized import Quantized
from codec.quantization.quantizers import Matrix, RowAbsmax, half_precision_steps, step_exponent

NO_MOMENTS = Moments(np.zeros((0, 0), np.float32), np.zeros(0, np.float32))

MATRICES = arrays(
    np.float32,
    st.tuples(st.integers(0, 6), st.integers(0, 6)),
    elements=st.floats(-1e4, 1e4, width=32) | st.sampled_from([0.0, 1e-30, 3e-7, 1e30, -1.0]),
)


def check(weights: np.ndarray, bits: int) -> Quantized:
    """Quantize, and assert what holds for any matrix."""
    limit = (1 << (bits - 1)) - 1
    found = RowAbsmax(bits)(Matrix("w", "matrix", weights, NO_MOMENTS))
    assert (found.symbols.dtype, found.symbols.shape) == (np.int32, weights.shape)
    assert (found.rows.dtype, found.rows.shape, found.columns) == (np.float32, weights.shape[:1], None)
    assert np.abs(found.symbols).max(initial=0) <= limit
    steps = found.rows.astype(np.float64)[:, None]
    error = np.abs(weights - steps * found.symbols)
    assert (error <= steps * 0.5 * (1 + 1e-6)).all()
    exponent = step_exponent(found.rows)
    halves = np.ldexp(found.rows, -exponent).astype(np.float16)
    assert np.array_equal(np.ldexp(halves.astype(np.float32), exponent), found.rows)
    return found


@pytest.mark.parametrize("bits", [2, 4, 6, 8])
def test_error_is_at_most_half_a_step(bits):
    weights = np.random.default_rng(bits).normal(size=(64, 128)).astype(np.float32)
    found = check(weights, bits)
    limit = (1 << (bits - 1)) - 1
    assert np.allclose(found.rows, np.abs(weights).max(1) / limit, rtol=2**-10)
    assert np.abs(found.symbols).max(1).tolist() == [limit] * 64


@given(MATRICES, st.integers(2, 8))
@example(np.zeros((0, 4), np.float32), 8)
@example(np.zeros((4, 0), np.float32), 8)
@example(np.full((1, 1), 3e38, np.float32), 8)
@example(np.array([[1e-30, 2e-30], [1.0, -1.0]], np.float32), 8)
def test_any_finite_matrix(weights, bits):
    found = check(weights, bits)
    zero = ~weights.any(1) if weights.size else np.ones(len(weights), bool)
    assert ((found.rows == 0) == zero).all()
    assert not found.symbols[zero].any()


@pytest.mark.parametrize("exponent", range(-30, 1, 3))
def test_rows_far_below_the_largest_keep_their_shape(exponent):
    """Down to 2^-14 of the largest step, steps keep 11 bits; further down they get coarser, never too fine."""
    row = np.random.default_rng(1).normal(size=256).astype(np.float32)
    weights = np.stack([row, np.ldexp(row, exponent)])
    found = check(weights, 8)
    if exponent >= -12:
        assert np.array_equal(found.symbols[0], found.symbols[1])


@pytest.mark.parametrize(
    "largest, exponent", [(1.0, 0), (0.5, -1), (0.500001, 0), (2.0**-40, -40), (3.0, 2), (0.0, 0), (2.0**100, 100)]
)
def test_step_exponent(largest, exponent):
    assert step_exponent(np.array([largest / 3, largest], np.float32)) == exponent


@given(arrays(np.float32, st.integers(0, 8), elements=st.floats(0, 2.0**100, width=32)))
@example(np.array([0.500001, 0.1], np.float32))  # rounds to 0.5, whose exponent is smaller
@example(np.array([1e-38, 2.0**100], np.float32))
def test_steps_on_the_grid_stay_there(steps):
    once = half_precision_steps(steps)
    assert np.array_equal(half_precision_steps(once), once)
    exponent = step_exponent(once)
    assert np.array_equal(np.ldexp(np.ldexp(once, -exponent).astype(np.float16).astype(np.float32), exponent), once)


def test_dequantize_is_float32_in_this_order():
    symbols = np.array([[1, -2], [3, 4]], np.int32)
    rows, columns = np.array([0.1, 7.3], np.float32), np.array([1.7, 0.3], np.float32)
    expected = [[np.float32(s) * r for s in line] for line, r in zip(symbols.tolist(), rows, strict=True)]
    assert np.array_equal(Quantized(symbols, rows).dequantize(), np.array(expected, np.float32))
    scaled = np.array([[w * c for w, c in zip(line, columns, strict=True)] for line in expected], np.float32)
    found = Quantized(symbols, rows, columns).dequantize()
    assert found.dtype == np.float32
    assert np.array_equal(found, scaled)
