"""Context mixing of binary decisions: the probabilities under many contexts become one, in integers alone.

Every context has a slot (`codec.entropy.adaptive_bit`). A decision's probabilities are stretched to ln(p / (1 - p)) in
units of 1/256. Each of several selectors chooses a set of weights, with which it sums the stretched probabilities. A
final set of weights sums those sums. The error of each sum moves the weights of that sum (logistic mixing: Mattern
2012; Mahoney 2005). Integers of 64 bits hold all values: a document of 2^30 bytes cannot make weights outgrow 2^45 or
a sum 2^63.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from codec.compiled import compiled
from codec.entropy.adaptive_bit import SHARE_BITS
from codec.numerics.tables import sigmoid

Array = NDArray[np.int64]

LIMIT = 3071
"""The largest stretched probability: 12 nats."""

WEIGHT_ONE = 1 << 16
_HALF = 1 << 15
_STEP = 18  # of the weights: they move by input * error * rate / 2^_STEP


class Tables(NamedTuple):
    """The two functions between a probability and its stretched form."""

    squash: Array  # [2 LIMIT + 1]: the probability of x - LIMIT in units of 2^-16, from 1 to 2^16 - 1
    stretch: NDArray[np.int16]  # [2^16]: the inverse of `squash`


@lru_cache
def tables() -> Tables:
    """Return `Tables` that are linear between exact values at every half nat, so that every machine has the same."""
    knots = np.rint(sigmoid(np.arange(-24, 25) / 2) * (1 << SHARE_BITS)).astype(np.int64)
    at, rest = np.divmod(np.arange(-LIMIT, LIMIT + 1) + LIMIT + 1, 128)
    squash = (knots[at] * (128 - rest) + knots[at + 1] * rest + 64) >> 7
    squash = squash.clip(1, (1 << SHARE_BITS) - 1)
    stretch = np.searchsorted(squash, np.arange(1 << SHARE_BITS)).clip(0, 2 * LIMIT) - LIMIT
    return Tables(squash, stretch.astype(np.int16))


class Mixer(NamedTuple):
    """The weights that adapt to a document's decisions."""

    weights: Array  # [sets, inputs], in units of 2^-16
    final: Array  # [final sets, selectors], in units of 2^-16


@compiled
def mix(mixer, tables, inputs, sets, final_set, sums):
    """Return the mixed probability in units of 2^-16.

    The sums of the selectors, then the final sum, are written into `sums` [selectors + 1].
    """
    total = 0
    for m in range(len(sets)):
        weights, dot = mixer.weights[sets[m]], 0
        for j in range(len(inputs)):
            dot += weights[j] * inputs[j]
        sums[m] = min(max((dot + _HALF) >> 16, -LIMIT), LIMIT)
        total += sums[m] * mixer.final[final_set, m]
    sums[len(sets)] = min(max((total + _HALF) >> 16, -LIMIT), LIMIT)
    return tables.squash[sums[len(sets)] + LIMIT]


@compiled
def correct(mixer, tables, inputs, sets, final_set, sums, bit, rate):
    """Move the weights after `mix` by the errors of their sums: first-layer weights by `rate`, final weights by 1."""
    goal = (1 << SHARE_BITS) if bit else 0
    error = goal - tables.squash[sums[len(sets)] + LIMIT]
    for m in range(len(sets)):
        mixer.final[final_set, m] += (sums[m] * error + (1 << (_STEP - 1))) >> _STEP
        weights, own = mixer.weights[sets[m]], (goal - tables.squash[sums[m] + LIMIT]) * rate
        for j in range(len(inputs)):
            weights[j] += (inputs[j] * own + (1 << (_STEP - 1))) >> _STEP
