"""Code the blocks of a solid archive, each on its own, by the tag of their records."""

from typing import Protocol

from codec.errors import FormatError


class BlockCodec(Protocol):
    """What codes a block of bytes."""

    def encode_block(self, data: bytes) -> bytes:
        """The payload of a block."""

    def decode_block(self, payload: bytes, size: int) -> bytes:
        """The `size` bytes of a block, in time and memory that `size` bounds. Raises FormatError for other payloads."""


CODECS: dict[int, BlockCodec] = {}
"""Codecs by the tag of their records (`codec.archive.format.Tag`)."""


def decode_block(tag: int, payload: bytes, size: int) -> bytes:
    """The bytes of a block. Raises FormatError for a damaged one, or a tag that has no codec."""
    if tag not in CODECS:
        raise FormatError(f"a record of kind {tag}, which this underpar does not know; use the underpar that wrote it")
    return CODECS[tag].decode_block(payload, size)
