"""Find where the last bytes occurred before, and what followed: a match model of two lengths."""

import numpy as np

from codec.cm.slots import learn_map, mixed
from codec.cm.state import BITS, EXPECTED, LAST, LENGTH, MATCH_LENGTHS, MATCH_MAPS, MATCHED, PARTIAL, PLACE, POINTER
from codec.cm.tables import STRETCH
from codec.compiled import compiled

LEAST = np.array([6, 14])
"""Bytes that a match begins with: 6 find many matches, 14 seldom err."""

_LONGEST, _LOOKED_AT = 400, 32


@compiled
def _look_up(s, which):
    """Enter the current place in the table; where no match goes on, find an earlier place with the same last bytes."""
    r, history, mask = s.registers, s.history, len(s.history) - 1
    place, least = r[PLACE], LEAST[which]
    if place < least:
        return
    hashed = mixed(least, 0)
    for i in range(least):
        hashed = mixed(hashed, np.int64(history[(place - 1 - i) & mask]))
    at = (hashed >> 8) & (s.heads.shape[1] - 1)
    found = np.int64(s.heads[which, at])
    if r[LENGTH + which] == 0 and found > 0 and place - found <= mask:
        n = 0
        while n < _LOOKED_AT and n < found and history[(found - 1 - n) & mask] == history[(place - 1 - n) & mask]:
            n += 1
        if n >= least:
            r[LENGTH + which], r[POINTER + which] = n, found
    s.heads[which, at] = place & 0x7FFFFFFF


@compiled
def follow(s):
    """Take the last byte into both matches."""
    r, mask = s.registers, len(s.history) - 1
    for which in range(2):
        if r[LENGTH + which] > 0:
            if r[EXPECTED + which] == r[LAST] & 255:
                r[LENGTH + which] = min(r[LENGTH + which] + 1, _LONGEST)
                r[POINTER + which] += 1
            else:
                r[LENGTH + which] = 0
        _look_up(s, which)
        r[EXPECTED + which] = np.int64(s.history[r[POINTER + which] & mask]) if r[LENGTH + which] > 0 else 0


@compiled
def predict(s, k):
    """Fill in four inputs from `k` on; return how reliable the first match is, 0 to 15."""
    r, x = s.registers, s.inputs
    trust = 0
    for which in range(2):
        length, byte = r[LENGTH + which], r[EXPECTED + which]
        x[k], x[k + 1] = 0, 0
        r[MATCHED + which] = -1
        if length > 0 and ((byte | 256) >> (8 - r[BITS])) == r[PARTIAL]:
            bit = (byte >> (7 - r[BITS])) & 1
            number = length if length < 16 else min(MATCH_LENGTHS - 1, 16 + ((length - 16) >> 2))
            at = MATCH_MAPS + which * MATCH_LENGTHS + number
            r[MATCHED + which] = at * 2 + bit
            learned, plain = np.int64(STRETCH[s.maps[at] >> 20]), min(length, 32) * 16
            x[k], x[k + 1] = (learned, plain) if bit else (-learned, -plain)
            if which == 0:
                trust = min(number // 2 + 1, 15)
        k += 2
    return trust


@compiled
def learn(s, bit):
    """Learn whether the matches predicted the bit."""
    for which in range(2):
        at = s.registers[MATCHED + which]
        if at >= 0:
            learn_map(s.maps, at >> 1, 1 if (at & 1) == bit else 0, 1023)
