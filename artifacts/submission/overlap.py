"""Measure how far a text repeats another text: count the runs of 13 consecutive words that both have.

Runs of 13 words are the customary measure of contamination (Brown et al. 2020, appendix C). A word is a run of letters,
digits and underscores, in lower case, so that spacing and punctuation hide no repeat.
"""

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

WORDS = 13
EXAMPLES = 3

_WORD = re.compile(r"\w+")
_FACTOR = np.uint64(0x9E3779B97F4A7C15)  # odd, so that no word's hash is lost: 2^64 over the golden ratio


@dataclass(frozen=True)
class Repeat:
    """The first run of words in a document that the other text also has; documents are counted from 0."""

    document: int
    words: str


@dataclass(frozen=True)
class Overlap:
    """The overlap of two texts: `shingles` distinct runs of words in the first, of which the other has `shared`."""

    documents: int
    repeating_documents: int
    shingles: int
    shared: int
    examples: list[Repeat]  # at most EXAMPLES


def overlap(text: Iterable[bytes], other: Iterable[bytes], words: int = WORDS) -> Overlap:
    """Compare the documents of `text` with those of `other`, 8 bytes of memory for each word of `other`.

    >>> other = [b"The quick brown fox jumps over the lazy dog."]
    >>> overlap([b"He saw the quick brown FOX, who ran.", b"Nothing"], other, words=4).examples
    [Repeat(document=0, words='the quick brown fox')]
    """
    known = np.unique(np.concatenate([np.zeros(0, np.uint64), *(shingles(document, words) for document in other)]))
    seen, shared = [np.zeros(0, np.uint64)], [np.zeros(0, np.uint64)]
    count, repeating = 0, 0
    examples: list[Repeat] = []
    for document in text:
        found = shingles(document, words)
        hits = _among(found, known)
        if hits.any():
            repeating += 1
            first = int(hits.argmax())
            if len(examples) < EXAMPLES:
                examples.append(Repeat(count, " ".join(_words(document)[first : first + words])))
        seen.append(found)
        shared.append(found[hits])
        count += 1
    distinct, common = (len(np.unique(np.concatenate(parts))) for parts in (seen, shared))
    return Overlap(count, repeating, distinct, common, examples)


def shingles(document: bytes, words: int = WORDS) -> NDArray[np.uint64]:
    """Hash every run of `words` consecutive words to 64 bits, in order: uint64 [number of words - words + 1].

    Two different runs have the same hash with a probability of about 2^-64.
    """
    hashes = np.array([_hash(word) for word in _words(document)], np.uint64)
    count = max(0, len(hashes) - words + 1)
    total = np.zeros(count, np.uint64)
    for i in range(words):
        total = total * _FACTOR + hashes[i : i + count]
    return total


def _among(values: NDArray[np.uint64], known: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Mark the values [N] that are in the sorted `known` [K], in N log K steps; bool [N]."""
    if not len(known):
        return np.zeros(len(values), np.bool_)
    return known[np.minimum(np.searchsorted(known, values), len(known) - 1)] == values


def _words(document: bytes) -> list[str]:
    return _WORD.findall(document.decode("utf-8", "replace").lower())


@lru_cache(1 << 18)
def _hash(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little")
