"""codec.quantization.steps: sensitivities to quarter octaves, and sensitivities that are no use."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from codec.quantization.steps import LARGEST, factors

SENSITIVITIES = arrays(np.float32, st.integers(1, 20), elements=st.floats(0, 2.0**100, width=32))


def test_steps_are_inverse_roots():
    found = factors(np.array([1.0, 4.0, 0.25, 2.0]), np.array([1.0, 16.0, 2.0**-10]))
    assert found.rows.tolist() == [0, -4, 4, -2]
    assert found.columns.tolist() == [0, -8, 20]
    assert found.rows.dtype == found.columns.dtype == np.int32


def test_insensitive_rows_get_at_most_eight_median_steps():
    """Also where most rows see no gradient at all, as in a hash table."""
    few = factors(np.array([1.0] * 10 + [1e-9, 0.0]), np.ones(1))
    most = factors(np.array([0.0] * 10 + [1.0, 1e-9, 1.0]), np.ones(1))
    assert few.rows.tolist() == [0] * 10 + [12, 12]
    assert most.rows.tolist() == [12] * 10 + [0, 12, 0]


def test_no_sensitivity_at_all():
    assert factors(np.zeros(3), np.zeros(2)).rows.tolist() == [0] * 3
    assert factors(np.zeros(0), np.zeros(0)).rows.shape == (0,)


@given(SENSITIVITIES, SENSITIVITIES)
def test_any_sensitivities(outputs, pivots):
    found = factors(outputs, pivots)
    for exponents, of in ((found.rows, outputs), (found.columns, pivots)):
        assert np.abs(exponents).max() <= LARGEST
        assert (np.diff(exponents[np.argsort(of)]) <= 0).all()
    within = (np.abs(found.columns) < LARGEST) & (pivots > 0)
    steps = 2.0 ** (found.columns[within] / 4)
    assert steps == pytest.approx(pivots[within].astype(float) ** -0.5, rel=2**0.126 - 1)
