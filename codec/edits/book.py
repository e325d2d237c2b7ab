"""The book: frequent edits, each with a number, that the coder names instead of spelling out."""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from codec.compiled import compiled
from codec.edits.model import BREAKS, PHRASES

OTHER = len(PHRASES) + len(BREAKS)
"""Number of an edit that is not in the book."""


class Book(NamedTuple):
    """The frequent edits as arrays: phrases, then breaks."""

    before: NDArray[np.uint8]  # [n, most]: canonical bytes
    before_size: NDArray[np.int64]
    after: NDArray[np.uint8]  # [n, most]: original bytes
    after_size: NDArray[np.int64]
    begins: NDArray[np.int64]  # [256]: the first phrase that begins with this byte, -1 for none
    following: NDArray[np.int64]  # [phrases]: the next phrase that begins with the same byte, -1 for none


@lru_cache
def book() -> Book:
    """Return PHRASES and BREAKS as arrays."""
    pairs = [*PHRASES, *((b" ", after) for after in BREAKS)]
    most = max(len(part) for pair in pairs for part in pair)
    before, after = (np.array([list(pair[side].ljust(most, b"\0")) for pair in pairs], np.uint8) for side in range(2))
    sizes = np.array([[len(part) for part in pair] for pair in pairs]).T.copy()
    begins, following = np.full(256, -1), np.full(len(PHRASES), -1)
    for n in range(len(PHRASES) - 1, -1, -1):
        byte = before[n, 0]
        begins[byte], following[n] = n, begins[byte]
    return Book(before, sizes[0], after, sizes[1], begins, following)


@compiled
def begins(text, i, parts, n, size):
    """Return whether `text` at i begins with the first `size` bytes of parts[n]."""
    if i + size > len(text):
        return False
    for m in range(size):  # noqa: SIM110
        if text[i + m] != parts[n, m]:
            return False
    return True


@compiled
def named(canonical, original, i, j, book):
    """Return the first entry of the book that leads from canonical byte i to original byte j, or OTHER.

    A break does so only if the bytes behind it agree, or if a phrase follows.
    """
    for n in range(len(book.before)):
        d, m = book.before_size[n], book.after_size[n]
        if not (begins(canonical, i, book.before, n, d) and begins(original, j, book.after, n, m)):
            continue
        if n < len(PHRASES) or (i + d == len(canonical) and j + m == len(original)):
            return n
        if i + d < len(canonical) and j + m < len(original):
            if canonical[i + d] == original[j + m]:
                return n
            for p in range(len(PHRASES)):
                if begins(canonical, i + d, book.before, p, book.before_size[p]) and begins(
                    original, j + m, book.after, p, book.after_size[p]
                ):
                    return n
    return OTHER


@compiled
def entry_of(canonical, original, edit, book):
    """Return the number of the book's entry that is this edit, or OTHER."""
    for n in range(len(book.before)):
        d, m = book.before_size[n], book.after_size[n]
        same = d == edit[1] and m == edit[3] and begins(canonical, edit[0], book.before, n, d)
        if same and begins(original, edit[2], book.after, n, m):
            return n
    return OTHER


@compiled
def chances(canonical, book):
    """Count the places where a phrase could be."""
    count = 0
    for i in range(len(canonical)):
        n = book.begins[canonical[i]]
        while n >= 0:
            count += begins(canonical, i, book.before, n, book.before_size[n])
            n = book.following[n]
    return count
