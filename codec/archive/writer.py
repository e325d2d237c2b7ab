"""Write archives (`.upz`) record by record."""

import zlib
from array import array
from collections.abc import Sequence
from io import BytesIO
from typing import BinaryIO

import numpy as np

from codec.archive.format import (
    PACK_HASH,
    Chunk,
    Contents,
    Header,
    Index,
    Tag,
    read_contents,
    write_chunk,
    write_footer,
    write_header,
)
from codec.archive.members import Member
from codec.archive.reader import check_pack
from codec.console import Advance, ignore_progress
from codec.errors import MismatchError
from codec.pack.reader import Pack
from codec.text.base import DocumentCoder
from codec.text.documents import Record
from codec.text.open_coder import default_policy, open_coder
from codec.text.policy import Adaptation, Policy

_NEEDS_MODEL = (Tag.MODELLED, Tag.MIXED)


def header_of(pack: Pack, policy: Policy) -> Header:
    """Return the header of an archive that is made with a pack."""
    window = policy.window if policy.window != default_policy(pack).window else None
    return Header(bytes.fromhex(pack.sha256)[:PACK_HASH], policy.adaptation, window)


class ChunkWriter:
    """A writer of header, records and footer to a stream that need not seek.

    The header is written with the first record, and names the model only if that record needs the model. Where a later
    record is the first to need the model, the footer names it.

    Args:
        stream: open for binary writing, at the end of `before` where that is given.
        header: the model and its use, for the case that any record needs the model.
        before: contents of the archive that records are added to.
    """

    def __init__(self, stream: BinaryIO, header: Header, before: Contents | None = None):
        self._stream, self._model = stream, header
        self._opening = before.opening if before else None
        self._header = before.header if before else Header()
        self._lengths = array("q", before.lengths if before else [])
        self._sizes = array("q", before.sizes if before else [])
        self._gaps = list(before.gaps) if before else []
        self.framing_bytes = 0

    def gap(self, size: int) -> None:
        """Note that `size` bytes before the next record are no record: the footer that is replaced."""
        self._gaps.append((len(self._sizes), size))

    def add(self, record: Record) -> None:
        """Write a record."""
        self.copy(Chunk(Tag(record.mode), record.crc, record.payload), record.text_bytes)

    def copy(self, record: Chunk, size: int) -> None:
        """Write a record of `size` original bytes as its chunk has it."""
        if record.tag in _NEEDS_MODEL:
            self._header = self._model
        self._open()
        chunk = write_chunk(record.tag, record.crc, record.payload)
        self._stream.write(chunk)
        self.framing_bytes += len(chunk) - len(record.payload)
        self._lengths.append(len(chunk))
        self._sizes.append(size)

    def add_pack(self, blob: bytes) -> None:
        """Write the pack, so that a decoder needs nothing beside the archive."""
        self._header = self._model
        self._open()
        chunk = write_chunk(Tag.PACK, zlib.crc32(blob), blob)
        self._stream.write(chunk)
        self.gap(len(chunk))

    def close(self, members: Sequence[Member]) -> None:
        """Write the footer."""
        opening = self._open()
        lengths, sizes = np.array(self._lengths, np.int64), np.array(self._sizes, np.int64)
        footer = write_footer(Index(opening, self._header, lengths, sizes, list(members), self._gaps))
        self._stream.write(footer)
        self.framing_bytes += len(footer)
        self._stream.flush()

    def _open(self) -> Header:
        if self._opening is None:
            self._opening = self._header
            self.framing_bytes += self._stream.write(write_header(self._opening))
        return self._opening


class ArchiveWriter:
    """A writer of documents to an archive on a stream, each document on its own.

    Args:
        stream: open for binary writing; for `append` also readable and seekable.
        pack: the opened pack that provides the probabilities.
        policy: context policy of a new archive.
        device: where the model runs, as of `codec.devices.find_devices`; the bytes do not depend on it.
        append: add documents to the archive that the stream holds.

    Raises:
        MismatchError: the archive to append to was made with another pack.
        FormatError: the archive to append to is damaged.

    An archive is complete when `close` has written its footer. Leaving a `with` block closes the archive, unless an
    error ends the block.

    >>> import io
    >>> from pathlib import Path
    >>> import codec
    >>> pack = codec.open(Path("artifacts/models/small.pack").read_bytes())
    >>> stream = io.BytesIO()
    >>> with codec.ArchiveWriter(stream, pack) as writer:
    ...     records = writer.append([b"The first document.", b""])
    >>> [record.text_bytes for record in records]
    [19, 0]
    >>> with codec.ArchiveWriter(stream, pack, append=True) as writer:
    ...     records = writer.append([b"One more."])
    """

    def __init__(
        self, stream: BinaryIO, pack: Pack, policy: Policy | None = None, device: str = "cpu", append: bool = False
    ):
        before = None
        if append:
            before = read_contents(stream)
            check_pack(before, pack)
            if before.header.pack is not None:
                policy = before.header.policy(default_policy(pack).window)
        policy = policy or default_policy(pack)
        self.coder: DocumentCoder = open_coder(pack, policy, device)
        self._chunks = ChunkWriter(stream, header_of(pack, policy), before)
        self._members = before.members if before else []
        if before:
            self._chunks.gap(stream.seek(0, 2) - before.end)

    @property
    def framing_bytes(self) -> int:
        """Return the bytes written so far that are no payload."""
        return self._chunks.framing_bytes

    def append(
        self, documents: Sequence[bytes], model_only: bool = False, advance: Advance = ignore_progress
    ) -> list[Record]:
        """Code documents and write their records; return the records. Pass many documents: they are coded together.

        Args:
            documents: any bytes, empty ones too.
            model_only: code every document with the model, also where a general compressor needs fewer bytes.
            advance: called with bytes of text.

        Raises:
            MismatchError: the archive has files, to which documents cannot be added (`codec.archive.encode_files`).
        """
        if documents and self._members:
            raise MismatchError("archive: it holds files; add files to it, or documents to an archive of their own")
        records = self.coder.encode(documents, model_only, advance)
        for record in records:
            self._chunks.add(record)
        return records

    def close(self) -> None:
        """Write the footer."""
        self._chunks.close(self._members)

    def __enter__(self) -> "ArchiveWriter":
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if kind is None:
            self.close()


def encode(
    model: Pack, documents: Sequence[bytes], device: str = "cpu", adaptation: Adaptation = Adaptation.NONE
) -> bytes:
    """Code documents (any bytes) with a pack; return an archive.

    Raises:
        MismatchError: the pack holds weights only, or not what the adaptation needs.

    >>> from pathlib import Path
    >>> import codec
    >>> pack = codec.open(Path("artifacts/models/small.pack").read_bytes())
    >>> text = b"A language model is the probability source of an arithmetic coder. " * 10
    >>> len(codec.encode(pack, [text])) < len(text)
    True
    """
    stream = BytesIO()
    with ArchiveWriter(stream, model, default_policy(model, adaptation), device) as writer:
        writer.append(documents)
    return stream.getvalue()
