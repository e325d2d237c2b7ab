"""Read archives (`.upz`) document by document."""

import zlib
from collections.abc import Iterator, Sequence
from io import BytesIO
from typing import Any, BinaryIO

from codec.archive.format import (
    Contents,
    following_offset,
    read_contents,
    read_mode,
    read_record,
)
from codec.console import Advance, ignore_progress
from codec.devices import group_bytes
from codec.errors import DocumentError, FormatError, MismatchError
from codec.pack.reader import Pack
from codec.text.documents import MODELLED, STORED, read_stored
from codec.text.open_coder import open_coder
from codec.text.policy import Policy

GROUP_BYTES = {"cpu": 1 << 20, "cuda": 1 << 24}
"""Bytes of documents, as they are in an archive, that a device decodes together: many for each of a coder's lanes."""


def check_pack(contents: Contents, pack: Pack) -> None:
    """Raises MismatchError for an archive that was made with another pack."""
    if contents.header["pack"] != pack.sha256:
        raise MismatchError(
            f"archive: made with pack {contents.header['pack'][:16]}…, this is pack {pack.sha256[:16]}…; "
            "pass the pack it was made with"
        )


class ArchiveReader:
    """Reads an archive from a seekable stream.

    Args:
        stream: open for binary reading.
        pack: the pack that the archive was made with.
        device: where the model runs, as of `codec.devices.find_devices`.

    Raises:
        MismatchError: made with another pack.
        FormatError: not an archive, of a later version, truncated or damaged.

    >>> import io
    >>> from pathlib import Path
    >>> import codec
    >>> pack = codec.open(Path("artifacts/models/small.pack").read_bytes())
    >>> reader = codec.ArchiveReader(io.BytesIO(codec.encode(pack, [b"one", b"two", b"three"])), pack)
    >>> len(reader), reader.decode([2, 0])
    (3, [b'three', b'one'])
    """

    def __init__(self, stream: BinaryIO, pack: Pack, device: str = "cpu"):
        self._stream = stream
        self._contents = read_contents(stream)
        check_pack(self._contents, pack)
        self.coder = open_coder(pack, self._contents.policy, device)
        self._device = device
        self.offsets, self.metadata = self._contents.offsets, self._contents.metadata
        self.longest = self._contents.longest

    def __len__(self) -> int:
        return len(self.offsets)

    @property
    def policy(self) -> Policy:
        """Return how the archive was coded; an `ArchiveWriter` of this policy codes the same."""
        return self._contents.policy

    def decode(self, documents: Sequence[int] | None = None, advance: Advance = ignore_progress) -> list[bytes]:
        """The documents numbered `documents` (all of them where None), in that order; errors as of `iterate`."""
        return list(self.iterate(documents, advance))

    def iterate(self, documents: Sequence[int] | None = None, advance: Advance = ignore_progress) -> Iterator[bytes]:
        """The documents numbered `documents` (all of them where None), one after the other, decoded in groups.

        Args:
            advance: told bytes of payload.

        Raises:
            FormatError: a record is damaged, or there is no such document.
            DocumentError: what was decoded is not what was encoded.
        """
        wanted = range(len(self)) if documents is None else documents
        for number in wanted:
            if not 0 <= number < len(self):
                raise FormatError(f"document {number}: the archive holds documents 0 to {len(self) - 1}")
        for group in self._groups(wanted):
            yield from self._decode(group, advance)

    def _groups(self, wanted: Sequence[int]) -> Iterator[list[int]]:
        """`wanted` cut where GROUP_BYTES of chunks are full."""
        limit = group_bytes(GROUP_BYTES, self._device)
        group: list[int] = []
        size = 0
        for number in wanted:
            group.append(number)
            size += following_offset(self._contents, number) - self.offsets[number]
            if size >= limit:
                yield group
                group, size = [], 0
        if group:
            yield group

    def _decode(self, group: Sequence[int], advance: Advance) -> Iterator[bytes]:
        records = {number: read_record(self._stream, self._contents, number) for number in sorted(set(group))}
        modelled = {number: payload for number, (mode, _, payload) in records.items() if mode == MODELLED}
        found: dict[int, bytes] = {}
        for number, document in self.coder.decode(modelled, advance, self.longest) if modelled else ():
            found[number] = document
            _check(number, document, records[number][1])
        for number in group:
            if number in found:
                yield found[number]
                continue
            _, crc, payload = records[number]  # one at a time: few bytes may stand for a very long document
            document = self._stored(number, payload)
            _check(number, document, crc)
            advance(len(payload))
            yield document

    def _stored(self, number: int, payload: bytes) -> bytes:
        try:
            return read_stored(payload, self.longest)
        except FormatError as error:
            raise FormatError(f"document {number}: {error}") from error


def _check(number: int, document: bytes, crc: int) -> None:
    if zlib.crc32(document) != crc:
        raise DocumentError(
            f"CRC-32 of the decoded bytes is {zlib.crc32(document):08x}, the archive says {crc:08x}; "
            "the archive is damaged or the arithmetic of this machine is not IEEE",
            number,
            document,
        )


def decode(model: Pack, packed: bytes, documents: Sequence[int] | None = None, device: str = "cpu") -> list[bytes]:
    """The documents of an archive, or those numbered `documents`.

    Raises:
        MismatchError: the archive was made with another pack.
        FormatError: it is not an archive, or damaged.

    >>> from pathlib import Path
    >>> import codec
    >>> pack = codec.open(Path("artifacts/models/small.pack").read_bytes())
    >>> packed = codec.encode(pack, [b"any bytes", bytes([255, 0]), b""])
    >>> codec.decode(pack, packed, documents=[1, 0])
    [b'\\xff\\x00', b'any bytes']
    """
    return ArchiveReader(BytesIO(packed), model, device).decode(documents)


def describe(archive: bytes | BinaryIO) -> dict[str, Any]:
    """What an archive says of itself, without its pack. Raises FormatError as `ArchiveReader` does."""
    stream = BytesIO(archive) if isinstance(archive, bytes) else archive
    contents = read_contents(stream)
    modes = [read_mode(stream, offset) for offset in contents.offsets]
    return {
        "archive_bytes": stream.seek(0, 2),
        "documents": len(contents.offsets),
        "modelled": modes.count(MODELLED),
        "stored": modes.count(STORED),
        **contents.header,
        "metadata": contents.metadata,
    }
