"""Cut files into pieces that are coded side by side.

The pieces of a file concatenate to it. They depend on its bytes alone, not on how a stream delivers them, and neither
way are more than a few of them in memory.
"""

from collections.abc import Iterator
from io import BytesIO
from typing import BinaryIO

PIECE = 1 << 13
"""Bytes of a text's pieces: about the context of a model, and enough pieces to fill the decoder's lanes."""

BINARY_PIECE = 1 << 16
"""Bytes of the pieces where a zero byte is near: zstandard, which is likely to store them, does better on more."""

_BLOCK = 1 << 20


def split(data: bytes) -> list[bytes]:
    """The pieces of `data`; see `pieces`."""
    return list(pieces(BytesIO(data)))


def pieces(stream: BinaryIO) -> Iterator[bytes]:
    """Pieces of PIECE / 2 to PIECE bytes (the last of fewer) that concatenate to all that `stream` holds.

    They end behind the last line end that allows it, or behind a space, or between two characters. Where the first
    PIECE bytes have a zero byte, the piece is one of BINARY_PIECE bytes. Nothing at all is one empty piece.
    """
    data, begin = stream.read(_BLOCK), 0
    while True:
        if len(data) - begin <= BINARY_PIECE and (block := stream.read(_BLOCK)):
            data, begin = data[begin:] + block, 0
            continue
        length = _piece(data, begin)
        if length >= len(data) - begin:  # all is read, or a piece would end before it
            yield data[begin:]
            return
        yield data[begin : begin + length]
        begin += length


def _piece(data: bytes, begin: int) -> int:
    """Bytes of the piece that begins at `begin`, which may be more than there are."""
    half, end = begin + PIECE // 2, begin + PIECE
    if data.find(b"\0", begin, end) >= 0:
        return BINARY_PIECE
    if len(data) <= end:
        return PIECE
    cut = data.rfind(b"\n", half, end) + 1 or data.rfind(b" ", half, end) + 1
    while not cut and end > half and data[end] & 0xC0 == 0x80:  # within a character
        end -= 1
    return (cut or end) - begin


def groups(documents: Iterator[bytes], limit: int) -> Iterator[list[bytes]]:
    """`documents` in lists that end as soon as they have `limit` bytes."""
    group: list[bytes] = []
    size = 0
    for document in documents:
        group.append(document)
        size += len(document)
        if size >= limit:
            yield group
            group, size = [], 0
    if group:
        yield group
