"""Two layers of weights and two adaptive probability maps: many odds become one probability.

Logistic mixing (Mattern 2012; Mahoney 2005), and secondary symbol estimation (Mahoney 2005).
"""

import numpy as np

from codec.cm.compiled import compiled
from codec.cm.slots import learn_map, mixed
from codec.cm.state import DECISIONS, EXPECTED, FINAL_ROW, INPUT_COUNT, KNOTS, LAST, REFINED, SELECTORS
from codec.cm.tables import LIMIT, SQUASH

_RATE, _FIRST_RATE, _FALL = 6, 16, 800  # of the first layer: from 22 to 6, halfway after 800 decisions
_STEP, _FINAL_STEP = 20, 18  # weights move by input * error * rate / 2^_STEP
_REMEMBERED = 255  # decisions, by an adaptive probability map


@compiled
def knot(odds):
    """Where odds lie in an adaptive probability map: the knot below, and how far behind it, 0 to 127."""
    y = min(max(odds + 2048, 0), 4095)
    return y >> 7, y & 127


@compiled
def between(maps, at, rest):
    """The probability, 22 bits, between a map's knot `at` and the next."""
    return (np.int64(maps[at] >> 10) * (128 - rest) + np.int64(maps[at + 1] >> 10) * rest) >> 7


@compiled
def mix(s):
    """The probability of a one in units of 2^-16 by `s.inputs` and `s.sets`, from 1 to 2^16 - 1."""
    r, x, row = s.registers, s.inputs, s.registers[FINAL_ROW]
    count = r[INPUT_COUNT]
    total = 0
    for m in range(SELECTORS):
        w, dot = s.weights[s.sets[m]], 0
        for j in range(count):
            dot += x[j] * w[j]
        dot = min(max((dot + 32768) >> 16, -LIMIT), LIMIT)
        s.sums[m] = dot
        total += dot * s.final[row, m]
    total = min(max((total + 32768) >> 16, -LIMIT), LIMIT)
    s.sums[SELECTORS] = total
    low, rest = knot(total)
    p = 2 * np.int64(SQUASH[total + LIMIT])
    for i in range(2):
        context = (r[LAST] & 255) << 8 | row if i == 0 else mixed(r[LAST] & 0xFFFF | r[EXPECTED] << 16, row) >> 20
        at = (2 * (context & (len(s.refined) // (2 * KNOTS) - 1)) + i) * KNOTS + low
        r[REFINED + i] = at + (rest >> 6)
        p += between(s.refined, at, rest) >> 6
    p = (p + 2) >> 2
    return min(max(p, 1), 65535)


@compiled
def correct(s, bit):
    """Move the weights after `mix` by what was wrong with each sum."""
    r, x, row = s.registers, s.inputs, s.registers[FINAL_ROW]
    count, goal = r[INPUT_COUNT], 65536 if bit else 0
    rate = _RATE + _FIRST_RATE * _FALL // (_FALL + r[DECISIONS])
    r[DECISIONS] += 1
    error = goal - np.int64(SQUASH[s.sums[SELECTORS] + LIMIT])
    for m in range(SELECTORS):
        s.final[row, m] += np.int32((s.sums[m] * error + (1 << (_FINAL_STEP - 1))) >> _FINAL_STEP)
        w, own = s.weights[s.sets[m]], (goal - np.int64(SQUASH[s.sums[m] + LIMIT])) * rate
        for j in range(count):
            w[j] += np.int32((x[j] * own + (1 << (_STEP - 1))) >> _STEP)
    for i in range(2):
        learn_map(s.refined, r[REFINED + i], bit, _REMEMBERED)
