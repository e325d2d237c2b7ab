"""Mix many odds into one probability: two layers of weights, then two adaptive probability maps.

Logistic mixing (Mattern 2012; Mahoney 2005), and secondary symbol estimation (Mahoney 2005).
"""

import numpy as np

from codec.cm.slots import learn_map, mixed
from codec.cm.state import DECISIONS, EXPECTED, FINAL_ROW, INPUT_COUNT, INPUTS, KNOTS, LAST, REFINED, SELECTORS
from codec.cm.tables import LIMIT, SQUASH
from codec.cm.vectors import LANES, dot, move
from codec.compiled import compiled

_RATE, _FIRST_RATE, _FALL = 28, 10, 800  # of the first layer: from 38 to 28, halfway after 800 decisions
_FINAL_STEP = 18  # final weights move by sum * error / 2^18, others by input * error * rate / 2^20
_REMEMBERED = 255  # decisions, by an adaptive probability map


@compiled
def knot(odds):
    """Return the place of odds in an adaptive probability map: the knot below, and the distance behind it, 0 to 127."""
    y = min(max(odds + 2048, 0), 4095)
    return y >> 7, y & 127


@compiled
def between(maps, at, rest):
    """Interpolate a map between knot `at` and the next: return a probability in units of 2^-22."""
    return (np.int64(maps[at] >> 10) * (128 - rest) + np.int64(maps[at + 1] >> 10) * rest) >> 7


@compiled
def mix(s):
    """Mix `s.inputs` with the weights of `s.sets`: return the probability of a one in units of 2^-16, 1 to 2^16 - 1."""
    r, x, row = s.registers, s.inputs, s.registers[FINAL_ROW]
    vectors = (r[INPUT_COUNT] + LANES - 1) // LANES
    for j in range(r[INPUT_COUNT], vectors * LANES):
        x[j] = 0
    total = 0
    for m in range(SELECTORS):
        product: int = dot(s.weights, s.sets[m] * INPUTS, x, vectors)  # type: ignore[call-arg]
        own = min(max((product + 32768) >> 16, -LIMIT), LIMIT)
        s.sums[m] = own
        total += own * s.final[row, m]
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
    """Move the weights that `mix` used, each by the error of its sum; `bit` is the decision that was coded."""
    r, x, row = s.registers, s.inputs, s.registers[FINAL_ROW]
    vectors, goal = (r[INPUT_COUNT] + LANES - 1) // LANES, 65536 if bit else 0
    rate = _RATE + _FIRST_RATE * _FALL // (_FALL + r[DECISIONS])
    r[DECISIONS] += 1
    error = goal - np.int64(SQUASH[s.sums[SELECTORS] + LIMIT])
    for m in range(SELECTORS):
        s.final[row, m] += np.int32((s.sums[m] * error + (1 << (_FINAL_STEP - 1))) >> _FINAL_STEP)
        own = (goal - np.int64(SQUASH[s.sums[m] + LIMIT])) * rate
        move(s.weights, s.sets[m] * INPUTS, x, vectors, (own + 32) >> 6)  # type: ignore[call-arg]
    for i in range(2):
        learn_map(s.refined, r[REFINED + i], bit, _REMEMBERED)
