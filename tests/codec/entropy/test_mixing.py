"""codec.entropy.mixing: its two functions are each other's inverse, and mixing beats its inputs on a source that needs
it.
"""

import math

import numpy as np
import pytest

from codec.entropy import mixing
from codec.entropy.mixing import LIMIT, PRECISION, SHARE_BITS, WEIGHT_ONE, Mixer


def test_squash_is_the_logistic_function():
    squash, stretch = mixing.tables()
    x = np.arange(-LIMIT, LIMIT + 1) / 256
    assert np.abs(squash / (1 << SHARE_BITS) - 1 / (1 + np.exp(-x))).max() < 0.008  # half a nat apart, linear between
    assert (np.diff(squash) >= 0).all()
    assert squash[0] == 1 and squash[-1] == (1 << SHARE_BITS) - 1
    assert stretch[1 << (SHARE_BITS - 1)] == 0
    for share in (1, 100, 5000, 32768, 60000, 65535):
        assert squash[stretch[share] + LIMIT] >= share > squash[max(stretch[share] - 1 + LIMIT, 0)] - (share == 1)


def test_a_slot_learns_the_frequency():
    probabilities, counts = np.array([1 << (PRECISION - 1)]), np.zeros(1, np.int64)
    bits = np.random.default_rng(0).random(4000) < 0.1
    for bit in bits:
        mixing.learn(probabilities, counts, 0, bit, 1023)
    assert abs(mixing.share(probabilities[0]) / (1 << SHARE_BITS) - bits[-2000:].mean()) < 0.02
    assert counts[0] == 1023


@pytest.mark.parametrize("bits", [[1], [0], [1, 0], [0] * 50 + [1] * 50])
@pytest.mark.parametrize("most", [255, 1023])
def test_narrow_slots_learn_as_wide_ones(bits, most):
    wide = np.full(1, 1 << (PRECISION - 1)), np.zeros(1, np.int64)
    narrow = wide[0].astype(np.int32), wide[1].astype(np.int16)
    for bit in bits * (3000 // len(bits)):
        for probabilities, counts in (wide, narrow):
            mixing.learn(probabilities, counts, 0, bit, most)
        assert (narrow[0][0], narrow[1][0]) == (wide[0][0], wide[1][0])


def test_a_mixture_is_better_than_each_of_its_inputs():
    """Two conditions that multiply the odds, which no input alone sees."""
    rng, tables = np.random.default_rng(1), mixing.tables()
    mixer = Mixer(np.full((3, 3), WEIGHT_ONE // 2), np.full((1, 2), WEIGHT_ONE // 2))
    slots, counts = np.full(4, 1 << (PRECISION - 1)), np.zeros(4, np.int64)
    sums, cost, single = np.empty(3, np.int64), 0.0, 0.0
    for n in range(6000):
        a, b = rng.integers(2, size=2)
        bit = int(rng.random() < 1 / (1 + math.exp(-3 * (a + b - 1))))
        used = np.array([a, 2 + b])
        inputs = np.array([*(tables.stretch[mixing.share(p)] for p in slots[used]), 256])
        sets = np.array([0, 1 + a])
        share = mixing.mix(mixer, tables, inputs, sets, 0, sums)
        mixing.correct(mixer, tables, inputs, sets, 0, sums, bit, 2)
        if n >= 3000:
            cost -= math.log2((share if bit else (1 << 16) - share) / (1 << 16))
            one = mixing.share(slots[a])
            single -= math.log2((one if bit else (1 << 16) - one) / (1 << 16))
        for slot in used:
            mixing.learn(slots, counts, slot, bit, 255)
    assert cost < 0.85 * single
    assert cost / 3000 < 0.70  # the source has 0.65 bit, one input alone 0.83
