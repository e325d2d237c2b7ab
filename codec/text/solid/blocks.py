"""Write and read the records of blocks of a solid stream: the size of a block, then its code."""

import zlib
from collections.abc import Iterator, Mapping, Sequence

from codec.console import Advance, ignore_progress
from codec.devices import device_here, kind_of
from codec.entropy.varint import Fields, varint
from codec.errors import FormatError
from codec.pack.reader import Pack
from codec.text.base import DocumentCoder
from codec.text.coder import Coder
from codec.text.documents import Record
from codec.text.open_coder import make_coder
from codec.text.policy import Policy
from codec.text.solid.coder import SolidCoder

_MOST_BYTES = 1 << 26
"""Bytes of a block: those of a part of a file (`codec.archive.sources.PART`)."""


def open_blocks(
    pack: Pack | None = None, policy: Policy | None = None, device: str = "cpu", coder: DocumentCoder | None = None
) -> SolidCoder:
    """Open the coder of blocks: with the model of a pack on the first device of a name, or without a model.

    Args:
        pack: None for no model.
        policy: as of `codec.text.open_coder.open_coder`.
        device: as of `codec.devices.find_devices`.
        coder: an open coder of the same pack and policy, if there is one: its backend and compiled kernels are used
            again.

    Raises:
        MismatchError, FormatError, CodecError: as `codec.text.open_coder.open_coder`.
    """
    if isinstance(coder, Coder):
        return SolidCoder(coder)
    if pack is None:
        return SolidCoder()
    return SolidCoder(make_coder(pack, policy, kind_of(device_here(device))))


def encode_blocks(solid: SolidCoder, blocks: Sequence[bytes], advance: Advance = ignore_progress) -> list[Record]:
    """Code blocks side by side; `advance` is called with bytes of text."""
    payloads = solid.encode(blocks, advance)
    return [
        Record(p.kind, varint(len(block)) + p.data, zlib.crc32(block), len(block), len(block), p.tokens, 0.0, 0.0)
        for block, p in zip(blocks, payloads, strict=True)
    ]


def decode_blocks(
    solid: SolidCoder, records: Mapping[int, tuple[int, bytes, int | None]], advance: Advance = ignore_progress
) -> Iterator[tuple[int, bytes]]:
    """Decode blocks.

    Args:
        solid: of `open_blocks`.
        records: (kind, payload, bytes of the block) by number; None for the bytes where only the payload tells.
        advance: called with bytes of payload, from several threads.

    Yields:
        (number, bytes), in the order in which blocks end.

    Raises:
        FormatError: a payload is not that of a block of its size.
        MismatchError: a block was coded with a model, and `solid` has none.
    """
    blocks = {}
    for number, (kind, payload, size) in records.items():
        fields = Fields(payload, f"block {number}")
        stated = fields.count(_MOST_BYTES, "bytes")
        if size is not None and stated != size:
            raise FormatError(f"block {number}: {stated} bytes, expected {size}; the archive is damaged")
        blocks[number] = (kind, fields.take(fields.left), stated)
    yield from solid.decode(blocks, advance)
