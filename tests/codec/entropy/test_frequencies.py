"""codec.entropy.frequencies: exact against big integers, for any levels and every size of vocabulary."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from codec.entropy import frequencies
from codec.numerics import tables
from codec.numerics.widths import FEW_BITS

TOTAL = 1 << FEW_BITS
LIMIT = int(1000 / math.log(2)) * tables.LEVELS_PER_BIT  # a logit of the largest softcap

LEVELS = arrays(
    np.int64,
    st.tuples(st.integers(1, 3), st.integers(2, 40)),
    elements=st.integers(-LIMIT, LIMIT) | st.integers(-9000, 9000) | st.sampled_from([0, LIMIT, -LIMIT]),
)


def reference(levels: list[int]) -> list[int]:
    """The boundaries 0 .. 2^24 between the intervals of a row."""
    top = max(levels)
    table = tables.exp2_table(FEW_BITS).tolist()
    weights = [table[min(top - level, len(table) - 1)] for level in levels]
    below = [sum(weights[:k]) for k in range(len(weights) + 1)]
    return [w * (TOTAL - len(levels)) // below[-1] + k for k, w in enumerate(below)]


def check(levels: np.ndarray) -> None:
    """Every symbol of every row, both ways, at both ends of its interval."""
    rows, size = levels.shape
    bounds = torch.tensor([reference(row) for row in levels.tolist()])
    assert (bounds[:, 0].eq(0) & bounds[:, -1].eq(TOTAL)).all()
    sizes = bounds.diff()
    assert sizes.min() >= 1
    symbols = torch.arange(size).repeat(rows)
    repeated = torch.from_numpy(levels).repeat_interleave(size, 0)
    start, frequency, bits = frequencies.intervals(repeated, symbols)
    assert torch.equal(start, bounds[:, :-1].flatten())
    assert torch.equal(frequency, sizes.flatten())
    weights = frequencies.weights(torch.from_numpy(levels)).double()
    expected = torch.from_numpy(levels.max(1, keepdims=True) - levels) / 4096 + (weights.sum(1, True) / TOTAL).log2()
    assert torch.allclose(bits, expected.flatten(), rtol=1e-12)
    for targets in (start, start + frequency - 1):
        for found, wanted in zip(frequencies.find(repeated, targets), (symbols, start, frequency), strict=True):
            assert found.dtype == torch.int64
            assert torch.equal(found, wanted)


@given(LEVELS)
def test_any_levels(levels):
    check(levels)


@pytest.mark.parametrize("size", [2, 3, 255, 1024])
@pytest.mark.parametrize("spread", [0, 1, 30_000, LIMIT])
def test_every_symbol(size, spread):
    check(np.random.default_rng(size).integers(-spread, spread + 1, (1, size)))


@pytest.mark.parametrize("spread", [0, 5000, LIMIT])
def test_the_largest_vocabulary(spread):
    """Products come to 2^62 here; sampled symbols, because a row is long."""
    size = 16_384
    levels = np.random.default_rng(1).integers(-spread, spread + 1, (1, size))
    bounds = torch.tensor(reference(levels[0].tolist()))
    symbols = torch.cat((torch.arange(0, size, 331), torch.tensor([1, size - 2, size - 1])))
    repeated = torch.from_numpy(levels).expand(len(symbols), -1)
    start, frequency, _ = frequencies.intervals(repeated, symbols)
    assert torch.equal(start, bounds[symbols])
    assert torch.equal(start + frequency, bounds[symbols + 1])
    assert torch.equal(frequencies.find(repeated, start + frequency - 1)[0], symbols)
    assert bounds.diff().min() >= 1


@given(LEVELS, st.data())
def test_any_target(levels, data):
    targets = data.draw(st.lists(st.integers(0, TOTAL - 1), min_size=len(levels), max_size=len(levels)))
    symbols, starts, sizes = frequencies.find(torch.from_numpy(levels), torch.tensor(targets))
    again = frequencies.intervals(torch.from_numpy(levels), symbols)
    assert torch.equal(again[0], starts)
    assert torch.equal(again[1], sizes)
    assert all(s <= t < s + f for s, t, f in zip(starts.tolist(), targets, sizes.tolist(), strict=True))


def test_frequencies_follow_the_softmax():
    """Except for the 1 that every symbol gets, whose cost for a vocabulary of 8,192 is 2^-11 of the mass."""
    logits = torch.randn(20, 8192, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 3
    levels = torch.round(logits / math.log(2) * tables.LEVELS_PER_BIT).to(torch.int64)
    symbols = levels.argmax(1)
    _, frequency, bits = frequencies.intervals(levels, symbols)
    exact = -logits.log_softmax(1).gather(1, symbols[:, None])[:, 0] / math.log(2)
    assert (bits - exact).abs().max() < 2e-4
    assert (24 - frequency.double().log2() - exact).abs().max() < 1e-3
