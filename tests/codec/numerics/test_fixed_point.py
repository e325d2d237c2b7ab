"""codec.numerics.fixed_point: against Python's integers and fractions, at every magnitude float64 has."""

import math
from fractions import Fraction
from math import isqrt

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from codec.errors import CodecError
from codec.exact.families.transformer import exact_model
from codec.numerics.fixed_point import (
    EMULATION,
    check_products,
    exponent,
    power_of_two,
    reciprocal_sqrt,
    snap,
    snap_fixed,
)
from tests.support.helpers import PLAIN, weights_with_columns

FLOATS = st.floats(allow_nan=False, allow_infinity=False)


def tensor(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


@given(FLOATS)
@example(1.0)
@example(-0.0)
@example(2.0**-1022)
@example(5e-324)
def test_exponent(x):
    found = int(exponent(tensor(x)))
    if abs(x) >= 2.0**-1022:
        assert found == math.frexp(x)[1]
        assert Fraction(2) ** (found - 1) <= abs(Fraction(x)) < Fraction(2) ** found
    else:
        assert found == -1022


def test_powers_of_two():
    n = torch.arange(-1022, 1024)
    assert power_of_two(n).tolist() == [math.ldexp(1.0, k) for k in n.tolist()]


def nearest(x: Fraction) -> int:
    return round(x)  # Python's rounds halves to even, exactly


@given(
    st.lists(FLOATS.filter(lambda x: abs(x) < 2.0**960), min_size=1, max_size=8),
    st.sampled_from([2, 8, 15, 20]),
)
@example([0.0, -0.0], 15)
@example([2.0**959 * 1.999, 1.0], 15)
@example([1 - 2.0**-53, -1.0], 15)
@example([5e-324, 1e-310], 15)
@example([2.0**-65, 2.0**-70], 15)
def test_snap(row, bits):
    integers, step = snap(tensor(*row), bits)
    power = max(-64, max(math.frexp(x)[1] if x else -2000 for x in row))
    assert Fraction(step.item()) == Fraction(2) ** (power - bits + 1)
    assert integers.tolist() == [nearest(Fraction(x) / Fraction(step.item())) for x in row]
    assert integers.abs().max() <= 1 << (bits - 1)


def test_rows_are_snapped_one_by_one():
    rows = torch.randn(3, 5, 7, dtype=torch.float64) * 10.0 ** torch.arange(3)[:, None, None]
    integers, step = snap(rows)
    assert step.shape == (3, 5, 1)
    for i in range(3):
        for j in range(5):
            alone, its_step = snap(rows[i, j])
            assert torch.equal(alone, integers[i, j])
            assert torch.equal(its_step, step[i, j])


@given(st.floats(-1e6, 1e6), st.integers(-40, 40), st.sampled_from([8, 15]))
@example(0.5, 0, 15)
@example(1.5, 0, 15)
@example(-2.5, 0, 15)
@example(1e6, 40, 15)
def test_snap_fixed(x, fraction, bits):
    limit = 1 << (bits - 1)
    expected = max(-limit, min(limit, nearest(Fraction(x) * Fraction(2) ** fraction)))
    assert snap_fixed(tensor(x), fraction, bits).item() == expected
    assert snap_fixed(tensor(x), torch.tensor([fraction]), bits).item() == expected


def reference_rsqrt(m: float) -> Fraction:
    """2^k / floor(sqrt(m 4^k)), rounded to float64 once, with m 4^k in [2^50, 2^52)."""
    value, k = Fraction(m), 0
    while value >= 1 << 52:
        value, k = value / 4, k - 1
    while value < 1 << 50:
        value, k = value * 4, k + 1
    root = isqrt(math.floor(value))
    return Fraction(math.ldexp(float(Fraction(1, root)), k))


@given(st.floats(2.0**-970, 1.7e308))
@example(2.0**-970)
@example(2.0**-23)
@example(1.0)
@example(math.nextafter(1.0, 0))
@example(math.nextafter(4.0, 0))
@example(float((1 << 25) ** 2 + 1))
@example(float(((1 << 26) - 1) ** 2 - 1))
@example(float(((1 << 26) - 1) ** 2))
@example(1.7976931348623157e308)
def test_reciprocal_sqrt(m):
    found = Fraction(reciprocal_sqrt(tensor(m)).item())
    assert found == reference_rsqrt(m)
    assert abs(found * found * Fraction(m) - 1) < Fraction(1, 1 << 24)  # twice the relative error


@pytest.mark.parametrize("ulps", [-2, -1, 1, 2])
def test_a_library_whose_root_is_off_changes_nothing(ulps, monkeypatch):
    """Squares of integers and their neighbours are where the floor of a slightly wrong root is wrong."""
    roots = np.random.default_rng(0).integers(1 << 25, 1 << 26, 2000).astype(np.float64)
    m = torch.from_numpy(np.concatenate([roots**2 + d for d in (-1, 0, 1)]))
    expected = reciprocal_sqrt(m)
    true = torch.sqrt

    def off(x: torch.Tensor) -> torch.Tensor:
        toward = torch.tensor(math.copysign(math.inf, ulps), dtype=torch.float64)
        root = true(x)
        for _ in range(abs(ulps)):
            root = torch.nextafter(root, toward)
        return root

    monkeypatch.setattr(torch, "sqrt", off)
    assert torch.equal(reciprocal_sqrt(m), expected)
    assert [Fraction(v) for v in expected.tolist()[::50]] == [reference_rsqrt(v) for v in m.tolist()[::50]]


CPU = torch.device("cpu")


def test_products_are_checked():
    check_products.cache_clear()
    check_products(CPU)


@pytest.mark.parametrize("bits", [24, 40, 51])
def test_products_of_fewer_bits_are_refused(monkeypatch, bits):
    """A device whose product keeps so many bits of a sum, as an emulation of float64 may."""
    plain = torch.Tensor.__matmul__

    def short(left, right):
        found = plain(left, right)
        if not left.is_floating_point():
            return found
        unit = power_of_two(exponent(found) - bits)
        return torch.round(found / unit) * unit

    check_products.cache_clear()
    monkeypatch.setattr(torch.Tensor, "__matmul__", short)
    with pytest.raises(CodecError, match=r"sums of products below 2\^53 are not exact"):
        check_products(CPU)


def test_emulated_float64_is_refused(monkeypatch):
    """Before anything is computed on a GPU, so that no GPU is needed to see the refusal."""
    monkeypatch.setenv(EMULATION, "1")
    check_products.cache_clear()
    with pytest.raises(CodecError, match=f"{EMULATION}=1: .* unset the variable"):
        exact_model(weights_with_columns(PLAIN), "cuda")
