"""Adaptive binary coding: each bit is coded with the probability that the bits before it have left behind.

A slot holds the probability of a one, in units of 2^-PRECISION, and how many bits it has learnt from, up to a bound.
After a bit, the probability moves towards that bit by 2 / (2 n + 3) of the distance, n the count: below the bound, the
probability is the frequency of ones with a quarter of a bit of each kind added. All arithmetic is in integers, so that
every machine has the same probabilities. Probabilities may be int32 or int64, counts int16 or int64.

Coding a bit is compiled into its callers, because a call takes longer than the bit.
"""

import numpy as np

from codec.compiled import compiled, compiler
from codec.entropy import range_coder

PRECISION = 22
"""Bits of a slot's probability."""

SHARE_BITS = 16
"""Bits of a probability that the range coder sees."""

MOST = 1023
"""The largest bound on a slot's count; a stationary source pays 0.0007 bit a decision for it."""

EVEN = 1 << (PRECISION - 1)
"""A slot's probability that has seen nothing: one half."""

_RECIPROCALS = np.array([(1 << 16) * 2 // (2 * n + 3) for n in range(MOST + 1)], np.int64)


@compiled
def share(probability):
    """Return the part of 2^SHARE_BITS that a one gets: 1 to 2^SHARE_BITS - 1."""
    return min(max(probability >> (PRECISION - SHARE_BITS), 1), (1 << SHARE_BITS) - 1)


@compiled
def learn(probabilities, counts, slot, bit, most):
    """Move a slot's probability towards `bit`; the slot remembers up to `most` <= MOST bits."""
    n = counts[slot]
    goal = (1 << PRECISION) - 1 if bit else 0
    probabilities[slot] += ((goal - probabilities[slot]) * _RECIPROCALS[n]) >> 16
    if n < most:
        counts[slot] = n + 1


@compiler(inline="always")
def code_bit(state, stream, ones, bit, decode):
    """Encode `bit`, or decode and return it, where a one has `ones` of 2^SHARE_BITS. Zeros lie below ones."""
    unit = state[1] >> np.uint64(SHARE_BITS)
    zeros = (1 << SHARE_BITS) - ones
    if decode:
        bit = 1 if state[0] >= unit * np.uint64(zeros) else 0
    start, size = zeros if bit else 0, ones if bit else zeros
    if decode:
        range_coder.take(state, stream, start, size, unit)
    else:
        range_coder.put(state, stream, start, size, unit)
    return bit


@compiler(inline="always")
def code_adaptive(state, stream, probabilities, counts, slot, bit, most, decode):
    """Code one bit under a slot, let the slot learn the bit, and return the bit."""
    bit = code_bit(state, stream, share(probabilities[slot]), bit, decode)
    learn(probabilities, counts, slot, bit, most)
    return bit
