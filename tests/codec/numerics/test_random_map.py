"""codec.numerics.random_map: the signs by the definition of their generator, and as little alike as random ones."""

import hashlib

import numpy as np

from codec.numerics.random_map import signs

WORD = (1 << 64) - 1


def split_mix(index: int) -> int:
    """Output `index` of SplitMix64 from seed 0."""
    z = (index + 1) * 0x9E3779B97F4A7C15 & WORD
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & WORD
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & WORD
    return z ^ (z >> 31)


def test_the_generator_is_split_mix():
    assert [split_mix(i) for i in range(3)] == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]


def test_signs_are_bits_of_the_generator():
    for number, rows, columns in ((0, 3, 50), (5, 7, 64), (511, 1, 3)):
        bits = [split_mix((number << 40) + i // 64) >> (i % 64) & 1 for i in range(rows * columns)]
        assert signs(number, rows, columns).ravel().tolist() == [2 * bit - 1 for bit in bits]


def test_maps_are_unlike_each_other():
    maps = [signs(number, 64, 96).astype(np.int64) for number in range(4)]
    for i, a in enumerate(maps):
        assert abs(a.mean()) < 0.05
        for b in maps[:i]:
            assert abs((a * b).mean()) < 0.05
        gram = a @ a.T - 96 * np.eye(64)
        assert np.abs(gram).max() < 60


def test_digest():
    """A change of any sign changes what packs decode to: it needs a new `widths.ARITHMETIC`."""
    assert hashlib.sha256(signs(3, 100, 77).tobytes()).hexdigest()[:16] == "70360b6b818d5c20"
