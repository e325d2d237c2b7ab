"""Keep in hashed slots what each context has seen: a nibble's decisions in one cache line.

A bucket is 16 uint32. Entry 0 is a check of the context's hash. Entries 1 to 15 are the nodes of a nibble's binary
tree. A node is a probability (16 bits), a count of decisions (8 bits) and a history, the last seven decisions behind a
leading one (8 bits). Node 0 has seen nothing.
"""

import numpy as np

from codec.cm.tables import RECIPROCALS
from codec.compiled import compiled

WIDTH = 16
"""Entries of a bucket."""

HISTORIES = 640
"""Values of `history_index`: histories below 128 have one each, those above have four each, by ranges of counts."""

_MOST = 250  # decisions that a probability remembers
_A, _B = np.uint64(0x2545F4914F6CDD1D), np.uint64(0x5851F42D4C957F2D)  # odd multipliers
_ADDED = np.uint64(0x1F3D5B79)
_FIRST_SHIFT, _LAST_SHIFT = np.uint64(29), np.uint64(32)


@compiled
def mixed(a, b):
    """Return a hash (int64) of two integers.

    Products are unsigned: to LLVM, signed integers that overflow have no value, and numba says so (`nsw`). With signed
    ones, code for a processor without AVX entered all places of a text under one hash.
    """
    h = (np.uint64(np.int64(a)) + _ADDED) * _A
    h ^= h >> _FIRST_SHIFT
    h = (h + np.uint64(np.int64(b))) * _B
    return np.int64(h ^ (h >> _LAST_SHIFT))


@compiled
def bucket(nodes, hashed):
    """Return the index of the first bucket that a context may have."""
    return ((hashed >> 20) & (len(nodes) // WIDTH - 1)) * WIDTH


@compiled
def find(nodes, hashed):
    """Return the index of the bucket of a context's hash (int64).

    For a hash without a bucket, empty the least used of three buckets and return its index.
    """
    at = bucket(nodes, hashed)
    check = (hashed & 0xFFFFF) + 1
    best, least = 0, 1 << 30
    for i in range(3):
        base = at ^ (i * WIDTH)
        found = np.int64(nodes[base])
        if found == check:
            return base
        worth = int((np.int64(nodes[base + 1]) >> 8) & 255) if found else -1
        if worth < least:
            best, least = base, worth
    nodes[best] = np.uint32(check)
    for j in range(1, WIDTH):
        nodes[best + j] = np.uint32(0)
    return best


@compiled
def history_index(node):
    """Return the number of a node's history, 0 to HISTORIES - 1."""
    history, count = node & 255, (node >> 8) & 255
    return history + (history >> 7) * ((int(count >= 12) + int(count >= 24) + int(count >= 80)) << 7)


@compiled
def learned(node, bit):
    """Return a node after one more decision."""
    history, count, p = node & 255, (node >> 8) & 255, node >> 16
    if count == 0:
        history, p = 1, 32768
    goal = 65535 if bit else 0
    p += ((goal - p) * np.int64(RECIPROCALS[count])) >> 16
    history = (history << 1) | bit
    if history > 255:
        history = (history & 127) | 128
    return (p << 16) | (min(count + 1, _MOST) << 8) | history


@compiled
def learn_map(maps, at, bit, most):
    """Move an adaptive probability, which remembers up to `most` < 1024 decisions."""
    p, n = np.int64(maps[at]) >> 10, np.int64(maps[at]) & 1023
    goal = (1 << 22) - 1 if bit else 0
    p += ((goal - p) * np.int64(RECIPROCALS[n])) >> 16
    maps[at] = np.uint32(p << 10 | min(n + 1, most))
