"""Compute attention over rings of integer keys and values, in compiled loops over rows of tokens.

A slot of the caches is a ring: position p is at index p % size. All rows of a call write their keys and values before
any row reads them.
"""

import math

import numpy as np

from codec.backends.cpu.elementwise import fixed, rotate, snap
from codec.backends.cpu.matmul import COLUMNS, WIDE, heads_at_once, multiply_add, multiply_wide
from codec.compiled import kernel
from codec.numerics.tables import LEVELS_PER_BIT, exp2_series
from codec.numerics.widths import SOFTMAX_BITS

_LAST = float((SOFTMAX_BITS + 2) * LEVELS_PER_BIT - 1)  # from here on down, powers of two round to 0
_SHIFT = 9  # from 30 bits to one bit more than a weight has
_SERIES = tuple(math.ldexp(a, _SHIFT + 1) for a in exp2_series(SOFTMAX_BITS))  # powers of 30 bits, which fit int32
_OCTAVE = LEVELS_PER_BIT.bit_length() - 1


@kernel
def remember(new_keys, new_values, rows, value_scale, rope, cache):
    """Write the rows' keys and values into the caches.

    Args:
        new_keys: float64 [n, kv_dim].
        new_values: float64 [n, kv_dim].
        rows: positions and slots, int64 [n] each.
        value_scale: float64 [kv_heads], one over the step of each grid of values.
        rope: cosines and sines [n, pairs], and the scale of keys.
        cache: keys and values of one execution, as `codec.backends.cpu.network.run` has them.
    """
    (positions, slots), (cos, sin, scale), (keys, values) = rows, rope, cache
    size = new_keys.shape[1] // len(value_scale)
    snapped, key = np.empty(size, np.int32), np.empty(size, np.int16)
    for i in range(len(positions)):
        slot, p = slots[i], positions[i] % (keys.shape[2] * WIDE)
        for h in range(len(value_scale)):
            at = h * size
            rotate(new_keys[i, at : at + size], cos[i], sin[i], scale, snapped, key)
            for t in range(size):
                keys[slot, h, p // WIDE, t // 2, p % WIDE, t % 2] = key[t]
                value = fixed(new_values[i, at + t], value_scale[h])
                values[slot, h, p // WIDE, t // COLUMNS, p % WIDE // 2, t % COLUMNS, p % 2] = value


@kernel
def softmax(scores, scale, limit, low, high):
    """Compute attention weights, fill in their digits `low` + 2^11 `high`, and return the sum of the weights.

    A weight is an entry of `tables.exp2_table`. A polynomial, shifted and rounded, gives the entry: a look-up in the
    table would be slower, because processors do look-ups one by one.

    Args:
        scores: int32 [n].
        scale: from scores to levels.
        limit: where levels saturate, at this and at its negative.
        low: int16 [n], filled in.
        high: int16 [n], filled in.
    """
    a0, a1, a2, a3, a4, a5, a6, a7 = _SERIES
    least, most = np.int32(0x7FFFFFFF), np.int32(-0x7FFFFFFF)
    for s in range(len(scores)):
        least = scores[s] if scores[s] < least else least
        most = scores[s] if scores[s] > most else most
    top, total = min(max(np.rint(np.float64(most if scale >= 0 else least) * scale), -limit), limit), np.int64(0)
    for s in range(len(scores)):
        below = top - min(max(np.rint(np.float64(scores[s]) * scale), -limit), limit)
        index = np.int32(below if below < _LAST else _LAST)
        x = np.float64(index & (LEVELS_PER_BIT - 1)) - LEVELS_PER_BIT / 2
        power = ((((((a7 * x + a6) * x + a5) * x + a4) * x + a3) * x + a2) * x + a1) * x + a0
        shifted = np.int32(power) >> (_SHIFT + (index >> _OCTAVE))
        weight = (shifted + 1) >> 1  # rounded
        digit = (weight + 1024) >> 11
        low[s], high[s] = weight - (digit << 11), digit
        total += weight
    return np.float64(total)


@kernel
def weighted_sum(digits, values, base, count, sums):
    """Multiply digits with the values of `count` positions, and fill in the sums.

    Digits of 11 bits times values of 15 bits: a sum of WIDE products stays below 2^31.

    Args:
        digits: int16 [4 or 6, count or more].
        values: int16 [ring / WIDE, size / COLUMNS, WIDE / 2, COLUMNS, 2].
        base: the first position, a multiple of WIDE.
        count: positions.
        sums: int64 [4 or 6, size], filled in.
    """
    sums[:] = 0
    for at in range(0, count, WIDE):
        place, pairs = (base + at) // WIDE % len(values), (min(WIDE, count - at) + 1) // 2
        for b in range(values.shape[1]):
            multiply_add(digits[:, at:], values[place, b, :pairs], sums[:, b * COLUMNS :])


@kernel
def _remove_own(mixed, own):
    """Remove the component of a head's output [head_dim] along the token's own value [head_dim / COLUMNS, COLUMNS]."""
    dot = square = np.int64(0)
    for t in range(len(mixed)):
        value = np.int64(own[t // COLUMNS, t % COLUMNS])
        dot += np.int64(np.rint(mixed[t])) * value
        square += value * value
    ratio = np.float64(dot) / np.float64(square if square > 0 else 1)
    for t in range(len(mixed)):
        mixed[t] -= ratio * np.float64(own[t // COLUMNS, t % COLUMNS])


@kernel
def attend(queries, gates, rows, window, score_scale, value_step, rope, cache, xsa):
    """Compute attention, and snap its rows of outputs.

    Two or three heads with the same keys are computed at a time. If fewer are left over, the rest of the buffers holds
    old numbers, and no result from that rest is read.

    Args:
        queries: float64 [n, dim], overwritten.
        gates: float64 [n, heads], multiplied with the heads' outputs.
        rows: positions and slots, int64 [n] each.
        window: positions that a row sees, its own included.
        score_scale: float64 [heads], from integer scores to levels.
        value_step: float64 [kv_heads], the steps of the grids of values.
        rope: cosines and sines [n, pairs], and the scale of queries.
        cache: keys and values of one execution, as `codec.backends.cpu.network.run` has them.
        xsa: whether to remove the component along the token's own value.

    Returns:
        Snapped rows int32 [n, dim] and their steps float64 [n].
    """
    (positions, slots), (cos, sin, query_scale), (keys, values) = rows, rope, cache
    heads, blocks = len(score_scale), keys.shape[2]
    size, group = queries.shape[1] // heads, heads // len(value_step)
    at_once = heads_at_once(group)
    snapped, query = np.empty(size, np.int32), np.zeros((at_once, size), np.int16)
    width = (blocks + 1) * WIDE  # room for a window that begins within a block
    scores, digits = np.empty((at_once, width), np.int32), np.zeros((2 * at_once, width), np.int16)
    sums, totals = np.empty((2 * at_once, values.shape[3] * COLUMNS), np.int64), np.empty(at_once)
    mixed, steps = np.empty(queries.shape, np.int32), np.empty(len(queries))
    for i in range(len(queries)):
        slot, p, own = slots[i], positions[i], positions[i] % (blocks * WIDE)
        first = max(0, p - window + 1)
        base = first // WIDE * WIDE
        begin, count = first - base, p + 1 - base
        digits[:, :begin] = 0
        digits[:, count : count + 1] = 0  # the second position of a pair
        for h in range(heads):
            kv, place = h // group, h % group % at_once
            out = queries[i, h * size : (h + 1) * size]
            rotate(out, cos[i], sin[i], query_scale, snapped, query[place])
            if place < at_once - 1 and h % group < group - 1:
                continue  # until there are so many heads
            # Queries and keys have a length of 2^14, up to rounding: their products are far below 2^31.
            for at in range(0, count, WIDE):
                multiply_wide(query, keys[slot, kv, (base + at) // WIDE % blocks], scores[:, at:])
            for g in range(place + 1):
                low, high, scale = digits[g, begin:count], digits[at_once + g, begin:count], score_scale[h - place + g]
                totals[g] = softmax(scores[g, begin:count], scale, np.inf, low, high)
            weighted_sum(digits, values[slot, kv], base, count, sums)
            for g in range(place + 1):
                at = (h - place + g) * size
                for t in range(size):
                    queries[i, at + t] = np.float64(sums[g, t] + (sums[at_once + g, t] << 11)) / totals[g]
                if xsa:
                    _remove_own(
                        queries[i, at : at + size], values[slot, kv, own // WIDE, :, own % WIDE // 2, :, own % 2]
                    )
                for t in range(size):
                    queries[i, at + t] = queries[i, at + t] * value_step[kv] * gates[i, h - place + g]
        steps[i] = snap(queries[i], mixed[i])
    return mixed, steps
