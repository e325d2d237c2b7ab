"""The aligner: find the edits that turn a document's canonical bytes into its original bytes."""

import numpy as np
from numpy.typing import NDArray

from codec.compiled import compiled, making
from codec.edits.book import OTHER, book, named
from codec.edits.model import PHRASES

Edits = NDArray[np.int64]
"""int64 [K, 4]: canonical position, bytes deleted, where the inserted bytes begin in the original, how many."""

_REACH = 64  # bytes after a difference in which the aligner looks for agreement
_AGREE = 6  # bytes that must agree there


@compiled
def _agree(a, b, i, j, count):
    """Return whether `count` bytes agree from a[i] and b[j] on, or both texts end with the agreement."""
    for n in range(count):
        if i + n >= a.shape[0] or j + n >= b.shape[0]:
            return i + n >= a.shape[0] and j + n >= b.shape[0]
        if a[i + n] != b[j + n]:
            return False
    return True


@compiled
def _nearest(canonical, original, i, j):
    """Return how many bytes to delete and to insert until both texts agree again; all the rest if they never do."""
    for distance in range(1, 2 * _REACH + 1):
        for d in range(max(0, distance - _REACH), min(distance, _REACH) + 1):
            if _agree(canonical, original, i + d, j + distance - d, _AGREE):
                return min(d, len(canonical) - i), min(distance - d, len(original) - j)
    return len(canonical) - i, len(original) - j


@making
def _align(canonical, original, book):
    edits = [(0, 0, 0, 0) for _ in range(0)]
    i, j = 0, 0
    while i < len(canonical) or j < len(original):
        same = i < len(canonical) and j < len(original) and canonical[i] == original[j]
        phrase = OTHER
        if i < len(canonical) and (not same or book.begins[canonical[i]] >= 0 or canonical[i] == 32):
            phrase = named(canonical, original, i, j, book)
        if same and phrase >= len(PHRASES) and (phrase == OTHER or _agree(canonical, original, i + 1, j + 1, 1)):
            i += 1
            j += 1
            continue
        if phrase < OTHER:
            delete, insert = book.before_size[phrase], book.after_size[phrase]
        else:
            delete, insert = _nearest(canonical, original, i, j)
        edits.append((i, delete, j, insert))
        if delete == 0 and i < len(canonical):  # the byte after an insertion is a copied one
            delete, insert = 1, insert + 1
        i += delete
        j += insert
    out = np.empty((len(edits), 4), np.int64)
    for n in range(len(edits)):
        out[n, 0], out[n, 1], out[n, 2], out[n, 3] = edits[n]
    return out


def align(canonical: NDArray[np.uint8], original: NDArray[np.uint8]) -> Edits:
    """Return edits that turn `canonical` into `original`.

    The search is greedy: after a difference, it takes the nearest position from which 6 bytes agree.
    """
    return _align(canonical, original, book())
