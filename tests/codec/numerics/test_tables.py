"""codec.numerics.tables: every entry against independent arithmetic, and the digests that no machine may change."""

import hashlib
import math
from decimal import Decimal, localcontext

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from codec.backends.cpu.elementwise import rotations as cpu_rotations
from codec.numerics import tables, widths
from codec.numerics.rotary import rotations


def digest(*arrays: NDArray) -> str:
    return hashlib.sha256(b"".join(np.ascontiguousarray(a, "<i8").tobytes() for a in arrays)).hexdigest()[:16]


def rope_tables(base: float, dims: int, length: int, yarn: float = 1.0) -> NDArray[np.int64]:
    """Cosines and sines int64 [2, length, dims / 2] of the first positions, in units of 2^-ROPE_BITS."""
    turns = torch.from_numpy(tables.rope_turns(base, dims, length, yarn))
    found = torch.stack(rotations(turns, torch.arange(length))).numpy() * (1 << widths.ROPE_BITS)
    assert np.array_equal(found, np.rint(found))
    return found.astype(np.int64)


@pytest.mark.parametrize("bits", [20, 24, 30])
def test_exp2(bits):
    table = tables.exp2_table(bits)
    assert (table.dtype, len(table)) == (np.int64, tables.EXP2_LENGTH)
    exact = 2.0 ** (bits - np.arange(tables.EXP2_LENGTH) / tables.LEVELS_PER_BIT)  # float64: to 1e-7 units
    assert np.abs(table - exact).max() <= 0.5 + 1e-6
    assert (table[0], table[4096], table[-1]) == (1 << bits, 1 << (bits - 1), 0)
    assert (np.diff(table) <= 0).all()


def test_exp2_series():
    """Its values are nearer to the table's entries than to any other integer, by far more than float64 rounds."""
    i, value = np.arange(tables.EXP2_LENGTH), 0.0
    for coefficient in reversed(tables.exp2_series(20)):
        value = value * (i % tables.LEVELS_PER_BIT - tables.LEVELS_PER_BIT // 2.0) + coefficient
    value = value * 2.0 ** -(i // tables.LEVELS_PER_BIT)
    assert np.array_equal(np.rint(value), tables.exp2_table(20))
    assert (np.abs(value - np.floor(value) - 0.5) > value * 2.0**-38).all()


@pytest.mark.parametrize("cap", [1.0, 30.0, 23.7, 15.0])
def test_softcap(cap):
    table = tables.softcap_table(cap)
    assert table.dtype == np.int64
    logits = np.arange(len(table)) / tables.LOGIT_GRID
    exact = cap * np.tanh(logits / cap) / math.log(2) * tables.LEVELS_PER_BIT
    assert np.abs(table - exact).max() <= 0.5 + 1e-6
    assert (np.diff(table) >= 0).all()
    assert logits[-1] >= 9 * cap - 1 / tables.LOGIT_GRID
    assert cap / math.log(2) * tables.LEVELS_PER_BIT - table[-1] <= 0.51  # nothing is gained beyond the end


@pytest.mark.parametrize("length, yarn", [(4096, 4.0), (4096, 1.5), (64, 2.0)])
def test_yarn(length, yarn):
    """Fast pairs as they were, slow ones as if positions were closer together, the others between."""
    cos, sin = rope_tables(10_000.0, 64, length, yarn)
    frequencies = 10_000.0 ** (-np.arange(0, 64, 2) / 64)
    turns = length / yarn * frequencies / (2 * math.pi)
    slowed = np.where(turns > 32, 1, np.where(turns < 1, 1 / yarn, (turns - 1) / 31 + (32 - turns) / 31 / yarn))
    assert (slowed == 1).any() == (length > 100) and (slowed == 1 / yarn).any()
    angles = np.arange(length)[:, None] * frequencies * slowed
    for table, exact in ((cos, np.cos(angles)), (sin, np.sin(angles))):
        assert np.abs(table - exact * (1 << widths.ROPE_BITS)).max() <= 0.5 + 1e-6


def decimal_cosine(angle: Decimal) -> Decimal:
    """Cosine by halving the angle until two terms of the series are enough: unlike the table's own series."""
    with localcontext(prec=90):
        x = angle / (1 << 60)
        versine = x * x / 2 - x**4 / 24  # 1 - cos
        for _ in range(60):
            versine = 2 * versine * (2 - versine)
        return 1 - versine


@pytest.mark.parametrize(
    "base, dims, length", [(10_000.0, 64, 1024), (10_000.0, 16, 2048), (500.0, 2, 64), (1.0, 6, 9)]
)
def test_rope(base, dims, length):
    cos, sin = rope_tables(base, dims, length)
    assert cos.shape == sin.shape == (length, dims // 2)
    angles = np.arange(length)[:, None] * base ** (-np.arange(0, dims, 2) / dims)
    for table, exact in ((cos, np.cos(angles)), (sin, np.sin(angles))):
        assert np.abs(table - exact * (1 << widths.ROPE_BITS)).max() <= 0.5 + 1e-6
    with localcontext(prec=60):
        for p, i in ((1, 0), (length - 1, dims // 2 - 1), (length // 2, dims // 4)):
            angle = p * (Decimal(base).ln() * (-2 * i) / dims).exp()
            assert abs(decimal_cosine(angle) * (1 << widths.ROPE_BITS) - int(cos[p, i])) <= Decimal("0.5000001")


@pytest.mark.parametrize("base, dims, length", [(10_000.0, 16, 512), (500.0, 4, 1500)])
def test_rotations_far_beyond_a_window(base, dims, length):
    """Of the processor, too, at the ends of rows and digits and anywhere, against cosines of 90 digits."""
    generator = np.random.default_rng(0)
    low = max(length, tables.TURN_ROWS)
    edges = [low * tables.TURN_DIGITS**level for level in range(tables.TURN_LEVELS)]
    last = low * tables.TURN_DIGITS**tables.TURN_LEVELS - 1
    positions = np.array([*(e + d for e in edges for d in (-1, 0, 1)), last, *generator.integers(0, last, 40)])
    turns = tables.rope_turns(base, dims, length)
    found = torch.stack(rotations(torch.from_numpy(turns), torch.from_numpy(positions))).numpy()
    assert np.array_equal(np.array(cpu_rotations(turns, positions)), found)
    units = (found * (1 << widths.ROPE_BITS)).astype(int)
    with localcontext(prec=90):
        quarter = Decimal("1.57079632679489661923132169163975144209858469968755291")
        for n, p in enumerate(positions.tolist()):
            for i in range(dims // 2):
                angle = p * (Decimal(base).ln() * (-2 * i) / dims).exp()
                for unit, exact in zip(units[:, n, i], (angle, angle - quarter), strict=True):
                    assert abs(decimal_cosine(exact) * (1 << widths.ROPE_BITS) - int(unit)) <= Decimal("0.50001")


def test_sigmoid():
    values = np.concatenate([np.linspace(-50, 50, 1001), [0.0, -0.0, 1e-30, 1e6, -1e6, 1e300]]).reshape(-1, 1)
    found = tables.sigmoid(values)
    assert found.shape == values.shape
    units = found * (1 << 16)
    assert np.array_equal(units, np.rint(units))
    assert np.abs(units - (1 << 16) / (1 + np.exp(-np.clip(values, -700, 700)))).max() <= 0.5 + 1e-6
    assert tables.sigmoid(np.zeros(1, np.float16))[0] == 0.5


def test_sigmoid_table():
    table = tables.sigmoid_table()
    assert table.dtype == np.int64
    x = np.arange(len(table)) / tables.SIGMOID_GRID
    assert np.abs(table - (1 << tables.SIGMOID_BITS) / (1 + np.exp(-x))).max() <= 0.5 + 1e-6
    assert (table[0], table[-1], x[-1]) == (1 << 15, 1 << 16, 12)


def test_digests():
    """A change of any entry changes what packs decode to: it needs a new `widths.ARITHMETIC`."""
    assert digest(tables.exp2_table(20)) == "7fbc3adbe8dceca1"
    assert digest(tables.exp2_table(24)) == "4b852c6c48603d22"
    assert digest(tables.softcap_table(30.0)) == "6291f534aa6f2d15"
    assert digest(*rope_tables(10_000.0, 64, 1024)) == "6b5f8e1ceb6729ab"
    assert digest(*rope_tables(10_000.0, 16, 2048)) == "d6e0901104ce3bea"
    assert digest(*rope_tables(10_000.0, 64, 1024, 4.0)) == "350661dd2b556dfd"
    assert digest(tables.sigmoid_table()) == "bbee848b0ab3d1c5"
    assert digest(tables.sigmoid(np.linspace(-9, 9, 2001)) * 65536) == "ebce0409638140e8"
