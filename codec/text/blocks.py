"""Code the blocks of a solid archive, each on its own, by the tag of their records."""

from collections.abc import Callable
from typing import NamedTuple

from codec.errors import FormatError


class BlockCodec(NamedTuple):
    """What codes a block of bytes.

    `encode` makes the payload. `decode` is given the payload and the block's bytes, which bound its time and memory, and
    raises FormatError for other payloads.
    """

    encode: Callable[[bytes], bytes]
    decode: Callable[[bytes, int], bytes]


BYTES = 3
"""The tag of blocks that context mixing alone codes (`codec.cm.compressor`)."""


def codec_of(tag: int) -> BlockCodec:
    """The codec of records with this tag. Raises FormatError for a tag that has none."""
    if tag == BYTES:
        from codec.cm import compressor  # compiled code, which other records do without

        return BlockCodec(compressor.compress, compressor.decompress)
    raise FormatError(f"a record of kind {tag}, which this underpar does not know; use the underpar that wrote it")
