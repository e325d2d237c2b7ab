"""Hashes of contexts: the same integers wherever LLVM computes them."""

import numpy as np

from codec.cm.match import LEAST, _look_up
from codec.cm.slots import mixed
from codec.cm.state import PLACE, new_stream
from codec.compiled import compiled

WORD = 1 << 64


def wrapped(value: int) -> int:
    """The int64 that has these 64 bits."""
    value %= WORD
    return value - WORD if value >= WORD // 2 else value


def reference(a: int, b: int) -> int:
    h = (a + 0x1F3D5B79) * 0x2545F4914F6CDD1D % WORD
    h ^= h >> 29
    h = (h + b) * 0x5851F42D4C957F2D % WORD
    return wrapped(h ^ (h >> 32))


@compiled
def look_up_both(s):
    """Both loops of hashing in one function, where LLVM knows how they begin."""
    for which in range(2):
        _look_up(s, which)


def test_hashes_are_those_of_whole_numbers():
    for a, b in np.random.default_rng(0).integers(-(1 << 63), (1 << 63) - 1, (500, 2)):
        assert mixed(a, b) == reference(int(a), int(b))


def test_places_of_a_text_are_entered_under_their_hashes():
    s = new_stream(400)
    s.history[:20], s.registers[PLACE] = np.arange(65, 85), 20
    look_up_both(s)
    for which, count in enumerate(LEAST.tolist()):
        hashed = reference(count, 0)
        for n in range(count):
            hashed = reference(hashed, 84 - n)
        assert np.flatnonzero(s.heads[which]).tolist() == [(hashed >> 8) & (s.heads.shape[1] - 1)]
