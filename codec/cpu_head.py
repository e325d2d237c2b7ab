"""Logits to the coder's intervals on a processor: `ExactModel.levels` and `codec.frequencies` in passes over a row."""

import math

import numpy as np
from numba import njit

from codec.frequencies import TOTAL
from codec.tables import EXP2_LENGTH, LEVELS_PER_BIT, LOGIT_GRID

kernel = njit(nogil=True, cache=True, error_model="numpy")


@kernel
def levels(logits, softcap):
    """`ExactModel.levels` of logits [n, V] before their softcap: int32 [n, V]."""
    out, last = np.empty(logits.shape, np.int32), float(len(softcap) - 1)
    for i in range(len(logits)):
        for k in range(logits.shape[1]):
            index = np.rint(abs(logits[i, k]) * float(LOGIT_GRID))
            capped = softcap[np.int64(index if index < last else last)]
            out[i, k] = -capped if logits[i, k] < 0.0 else capped
    return out


@kernel
def _cumulative(below, symbol, z, vocabulary):
    return below * (TOTAL - vocabulary) // z + symbol


@kernel
def intervals(levels, targets, exp2):
    """`codec.frequencies.intervals` of levels [n, V]: (start, frequency, bits) float64 [3, n]."""
    n, size = levels.shape
    out = np.empty((3, n))
    for i in range(n):
        row, target = levels[i], targets[i]
        top = row.max()
        below = z = np.int64(0)
        for k in range(size):
            weight = exp2[min(top - row[k], EXP2_LENGTH - 1)]
            z += weight
            below += weight if k < target else 0
        gap = top - row[target]
        start = _cumulative(below, target, z, size)
        end = _cumulative(below + exp2[min(gap, EXP2_LENGTH - 1)], target + 1, z, size)
        out[0, i], out[1, i], out[2, i] = start, end - start, gap / LEVELS_PER_BIT + math.log2(z / TOTAL)
    return out


@kernel
def find(levels, targets, exp2):
    """`codec.frequencies.find` of levels [n, V]: (symbol, start, frequency) int64 [3, n]."""
    n, size = levels.shape
    out, sums = np.empty((3, n), np.int64), np.empty(size + 1, np.int64)
    for i in range(n):
        row = levels[i]
        top = row.max()
        sums[0] = 0
        for k in range(size):
            sums[k + 1] = sums[k] + exp2[min(top - row[k], EXP2_LENGTH - 1)]
        low, high = 0, size  # the symbol is at least `low` and below `high`
        while high - low > 1:
            middle = (low + high) // 2
            if _cumulative(sums[middle], middle, sums[size], size) <= targets[i]:
                low = middle
            else:
                high = middle
        start = _cumulative(sums[low], low, sums[size], size)
        out[0, i], out[1, i] = low, start
        out[2, i] = _cumulative(sums[low + 1], low + 1, sums[size], size) - start
    return out
