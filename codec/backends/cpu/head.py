"""Turn logits into the coder's intervals on a processor: `ExactModel.levels` and `codec.entropy.frequencies`."""

import math

import numpy as np
from numpy.typing import NDArray

from codec.compiled import kernel
from codec.exact.families.weights import LEVELS_PER_NAT
from codec.numerics import tables
from codec.numerics.tables import FRACTION_BITS, LEVELS_PER_BIT, LOGIT_GRID
from codec.numerics.widths import FEW, FEW_BITS, LARGEST_LEVEL, MANY_BITS, PRODUCT_BITS

_OCTAVE_BITS = 31
_OCTAVE = LEVELS_PER_BIT.bit_length() - 1


def octave() -> NDArray[np.uint32]:
    """Return `tables.octave` in fewer bits: the bits dropped never decide a rounding to weights."""
    return (tables.octave() >> (FRACTION_BITS - _OCTAVE_BITS)).astype(np.uint32)


@kernel
def weight(powers, below, bits):
    """Compute entry `below` of `tables.exp2_table` of `bits` from `octave`, which fits a first-level cache."""
    index = min(below, (bits + 2) * LEVELS_PER_BIT - 1)  # from there on down, powers of two round to 0
    shift = _OCTAVE_BITS - bits - 1 + (index >> _OCTAVE)  # to one bit more than weights have
    return np.int64(((powers[index & (LEVELS_PER_BIT - 1)] >> np.uint32(shift)) + 1) >> 1)


@kernel
def levels(logits, softcap):
    """Compute `ExactModel.levels`, int32 [n, V], from logits [n, V] before the softcap."""
    out, last = np.empty(logits.shape, np.int32), float(len(softcap) - 1)
    for i in range(len(logits)):
        for k in range(logits.shape[1]):
            index = np.rint(abs(logits[i, k]) * float(LOGIT_GRID))
            capped = softcap[np.int64(index if index < last else last)]
            out[i, k] = -capped if logits[i, k] < 0.0 else capped
    return out


@kernel
def plain_levels(logits, bias):
    """Compute `ExactTransformer.levels` of logits [n, V] before their bias [V]: int32 [n, V]."""
    out = np.empty(logits.shape, np.int32)
    for i in range(len(logits)):
        for k in range(logits.shape[1]):
            level = np.rint((logits[i, k] + bias[k]) * LEVELS_PER_NAT)
            out[i, k] = np.int32(min(max(level, -float(LARGEST_LEVEL)), float(LARGEST_LEVEL)))
    return out


@kernel
def _total_bits(vocabulary):
    """Return `codec.numerics.widths.total_bits`."""
    return FEW_BITS if vocabulary <= FEW else MANY_BITS


@kernel
def _dropped(z, bits):
    """Return how many low bits of a sum of weights z cumulative frequencies drop."""
    return max(0, math.frexp(np.float64(z))[1] - (PRODUCT_BITS - bits))


@kernel
def _cumulative(below, symbol, z, vocabulary, bits, drop):
    return (below >> drop) * ((1 << bits) - vocabulary) // (z >> drop) + symbol


@kernel
def intervals(levels, targets, powers):
    """Compute `codec.entropy.frequencies.intervals` of levels.

    Args:
        levels: int32 [n, V].
        targets: int64 [n], the symbols.
        powers: `octave`.

    Returns:
        (start, frequency, bits) float64 [3, n].
    """
    n, size = levels.shape
    out, bits = np.empty((3, n)), _total_bits(size)
    for i in range(n):
        row, target = levels[i], targets[i]
        top = row.max()
        below = z = np.int64(0)
        for k in range(size):
            share = weight(powers, top - row[k], bits)
            z += share
            below += share if k < target else 0
        gap = top - row[target]
        drop = _dropped(z, bits)
        start = _cumulative(below, target, z, size, bits, drop)
        end = _cumulative(below + weight(powers, gap, bits), target + 1, z, size, bits, drop)
        out[0, i], out[1, i], out[2, i] = start, end - start, gap / LEVELS_PER_BIT + math.log2(z) - bits
    return out


@kernel
def ordered_sums(levels, order, powers, out):
    """Compute `codec.entropy.frequencies.ordered_sums` of levels [n, V], with `octave`, into `out` int64 [n, K + 1]."""
    bits = _total_bits(levels.shape[1])
    for i in range(len(levels)):
        row, total = levels[i], np.int64(0)
        top = row.max()
        out[i, 0] = 0
        for k in range(len(order)):
            total += weight(powers, top - row[order[k]], bits) + 1
            out[i, k + 1] = total


@kernel
def sums_at(levels, order, powers, rows, columns, out):
    """Compute the entries (rows, columns) int64 [K] of `ordered_sums` into `out` int64 [K]; the rows ascend."""
    sums, row = np.empty((1, len(order) + 1), np.int64), -1
    for k in range(len(rows)):
        if rows[k] != row:
            row = rows[k]
            ordered_sums(levels[row : row + 1], order, powers, sums)
        out[k] = sums[0, columns[k]]


@kernel
def find(levels, targets, powers):
    """Compute `codec.entropy.frequencies.find` of levels.

    Args:
        levels: int32 [n, V].
        targets: int64 [n], cumulative frequencies.
        powers: `octave`.

    Returns:
        (symbol, start, frequency) int64 [3, n].
    """
    n, size = levels.shape
    out, sums, bits = np.empty((3, n), np.int64), np.empty(size + 1, np.int64), _total_bits(size)
    for i in range(n):
        row = levels[i]
        top = row.max()
        sums[0] = 0
        for k in range(size):
            sums[k + 1] = sums[k] + weight(powers, top - row[k], bits)
        drop = _dropped(sums[size], bits)
        low, high = 0, size  # the symbol is at least `low` and below `high`
        while high - low > 1:
            middle = (low + high) // 2
            if _cumulative(sums[middle], middle, sums[size], size, bits, drop) <= targets[i]:
                low = middle
            else:
                high = middle
        start = _cumulative(sums[low], low, sums[size], size, bits, drop)
        out[0, i], out[1, i] = low, start
        out[2, i] = _cumulative(sums[low + 1], low + 1, sums[size], size, bits, drop) - start
    return out
