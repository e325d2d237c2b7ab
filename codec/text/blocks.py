"""Code the blocks of a solid archive, each on its own, by the tag of their records."""

from collections.abc import Callable
from typing import NamedTuple

from codec.entropy.varint import Fields, varint
from codec.errors import FormatError


class BlockCodec(NamedTuple):
    """What codes a block of bytes.

    `encode` makes the payload. `decode` is given the payload and how many bytes the block has (None: as many as the
    payload says), which bounds its time and memory, and raises FormatError for other payloads.
    """

    encode: Callable[[bytes], bytes]
    decode: Callable[[bytes, int | None], bytes]


_MOST_BYTES = 1 << 26  # of a block

BYTES = 3
"""The tag of blocks that context mixing alone codes (`codec.cm.compressor`)."""


def codec_of(tag: int) -> BlockCodec:
    """The codec of records with this tag. Raises FormatError for a tag that has none."""
    if tag == BYTES:
        from codec.cm import compressor  # compiled code, which other records do without

        def encode(data: bytes) -> bytes:
            return varint(len(data)) + compressor.compress(data)

        def decode(payload: bytes, size: int | None) -> bytes:
            fields = Fields(payload, "block")
            stated = fields.count(_MOST_BYTES if size is None else size, "bytes")
            if size is not None and stated != size:
                raise FormatError(f"block of {stated} bytes, expected {size}; the archive is damaged")
            return compressor.decompress(fields.take(fields.left), stated)

        return BlockCodec(encode, decode)
    raise FormatError(f"a record of kind {tag}, which this underpar does not know; use the underpar that wrote it")
