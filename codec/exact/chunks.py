"""The chunks in which a document is scored: side by side, each one sees the tokens before it by a KV cache."""

from dataclasses import dataclass

BAND_UNIT = 64
"""Chunks are a multiple of this many tokens: blocks of keys, on all devices."""


@dataclass(frozen=True)
class Chunk:
    """Inputs [start, end) of a document; input i predicts target i, the token after it."""

    start: int
    end: int


def band_chunks(length: int, window: int) -> list[Chunk]:
    """Cut a document of `length` inputs, whose tokens each see the last `window`, themselves included.

    Each chunk has as many tokens as there are in a window, or up to BAND_UNIT - 1 more.

    >>> band_chunks(200, 90)
    [Chunk(start=0, end=128), Chunk(start=128, end=200)]
    """
    size = -(-window // BAND_UNIT) * BAND_UNIT
    return [Chunk(start, min(start + size, length)) for start in range(0, length, size)]
