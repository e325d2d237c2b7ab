"""Find documents that share words with held-out text, so that no score is of text that a model has read.

Two texts share a passage where both have the same `WORDS` consecutive words. Case, and all between words, is ignored.
Passages are compared by hashes of 64 bits: among 10^9 passages of training text, the chance that one hits one of 10^7
held-out passages by accident is 0.0005.
"""

import re
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

Passages = NDArray[np.uint64]
"""Hashes of passages."""

WORDS = 13
"""Consecutive words of a passage, as GPT-3's training text was cleaned of test text (Brown et al. 2020, appendix C)."""

BYTE, WORD = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F)
"""Odd factors between the bytes of a word and between the words of a passage: constants of splitmix64 and xxHash64."""


def passages(text: bytes) -> Passages:
    """Return a hash of each run of `WORDS` words of a text, in order: [words - 12], or [0] for fewer words.

    Example:
        >>> text = b"one two three four five six seven eight nine ten eleven twelve thirteen"
        >>> bool((passages(text) == passages(text.upper().replace(b" ", b", "))).all())
        True
        >>> len(passages(text)), len(passages(b"too short"))
        (1, 0)
    """
    spaced = re.sub(r"\W+", " ", text.decode(errors="replace").casefold())
    data = np.frombuffer(spaced.encode(errors="replace"), np.uint8)
    inside = data != ord(" ")
    edges = np.flatnonzero(np.diff(inside, prepend=False, append=False))
    lengths = edges[1::2] - edges[::2]
    if len(lengths) < WORDS:
        return np.empty(0, np.uint64)
    begins = np.cumsum(lengths) - lengths  # of words, in a text of words alone
    letters = data[inside].astype(np.uint64) + np.uint64(1)
    places = np.arange(len(letters)) - np.repeat(begins, lengths)
    words = np.add.reduceat(letters * _powers(BYTE, int(lengths.max()))[places], begins)
    words ^= words >> np.uint64(29)  # a product's low bits know only low bits
    count = len(words) - WORDS + 1
    found = np.zeros(count, np.uint64)
    for n, power in enumerate(_powers(WORD, WORDS)):
        found += words[n : n + count] * power
    return found


def held_out(texts: Iterable[bytes]) -> Passages:
    """Return the hashes of all passages of some texts, each once, ascending: 8 bytes for a word of text."""
    return np.unique(np.concatenate([np.empty(0, np.uint64), *map(passages, texts)]))


def overlaps(text: bytes, held: Passages) -> bool:
    """Return whether a text shares a passage with held-out texts, given as `held_out` returns them."""
    found = passages(text)
    if not len(held) or not len(found):
        return False
    places = np.searchsorted(held, found)
    return bool((held[np.minimum(places, len(held) - 1)] == found).any())


def _powers(factor: np.uint64, count: int) -> NDArray[np.uint64]:
    """Return the powers 0 to `count` - 1 of a factor, modulo 2^64."""
    return np.multiply.accumulate(np.concatenate([np.ones(1, np.uint64), np.full(count - 1, factor)]))
