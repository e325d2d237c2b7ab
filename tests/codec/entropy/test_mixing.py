"""codec.entropy.mixing: its two functions are each other's inverse, and mixing beats its inputs on a source that needs
it.
"""

import math

import numpy as np

from codec.entropy import mixing
from codec.entropy.adaptive_bit import EVEN, SHARE_BITS, learn, share
from codec.entropy.mixing import LIMIT, WEIGHT_ONE, Mixer


def test_squash_is_the_logistic_function():
    squash, stretch = mixing.tables()
    x = np.arange(-LIMIT, LIMIT + 1) / 256
    assert np.abs(squash / (1 << SHARE_BITS) - 1 / (1 + np.exp(-x))).max() < 0.008  # half a nat apart, linear between
    assert (np.diff(squash) >= 0).all()
    assert squash[0] == 1 and squash[-1] == (1 << SHARE_BITS) - 1
    assert stretch[1 << (SHARE_BITS - 1)] == 0
    for ones in (1, 100, 5000, 32768, 60000, 65535):
        assert squash[stretch[ones] + LIMIT] >= ones > squash[max(stretch[ones] - 1 + LIMIT, 0)] - (ones == 1)


def test_a_mixture_is_better_than_each_of_its_inputs():
    """Two conditions that multiply the odds, which no input alone sees."""
    rng, tables = np.random.default_rng(1), mixing.tables()
    mixer = Mixer(np.full((3, 3), WEIGHT_ONE // 2), np.full((1, 2), WEIGHT_ONE // 2))
    slots, counts = np.full(4, EVEN), np.zeros(4, np.int64)
    sums, cost, single = np.empty(3, np.int64), 0.0, 0.0
    for n in range(6000):
        a, b = rng.integers(2, size=2)
        bit = int(rng.random() < 1 / (1 + math.exp(-3 * (a + b - 1))))
        used = np.array([a, 2 + b])
        inputs = np.array([*(tables.stretch[share(p)] for p in slots[used]), 256])
        sets = np.array([0, 1 + a])
        ones = mixing.mix(mixer, tables, inputs, sets, 0, sums)
        mixing.correct(mixer, tables, inputs, sets, 0, sums, bit, 2)
        if n >= 3000:
            cost -= math.log2((ones if bit else (1 << 16) - ones) / (1 << 16))
            one = share(slots[a])
            single -= math.log2((one if bit else (1 << 16) - one) / (1 << 16))
        for slot in used:
            learn(slots, counts, slot, bit, 255)
    assert cost < 0.85 * single
    assert cost / 3000 < 0.70  # the source has 0.65 bit, one input alone 0.83
