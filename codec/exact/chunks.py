"""Cut documents into the chunks of chunked prefill: each chunk sees the tokens before it through a KV cache."""

from dataclasses import dataclass

CHUNK_UNIT = 64
"""The length of every chunk but a document's last is a multiple of this many tokens: a block of keys on all devices."""


@dataclass(frozen=True)
class Chunk:
    """The inputs [start, end) of a document. Input i predicts target i, the next token."""

    start: int
    end: int


def prefill_chunks(length: int, window: int) -> list[Chunk]:
    """Cut a document into chunks of a window's length, rounded up to a multiple of CHUNK_UNIT.

    Args:
        length: inputs of the document.
        window: tokens that a token sees, itself included.

    >>> prefill_chunks(200, 90)
    [Chunk(start=0, end=128), Chunk(start=128, end=200)]
    """
    size = -(-window // CHUNK_UNIT) * CHUNK_UNIT
    return [Chunk(start, min(start + size, length)) for start in range(0, length, size)]
