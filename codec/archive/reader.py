"""Read archives (`.upz`): documents by number, files by name and byte range, in any order."""

import io
import zlib
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from io import BytesIO
from pathlib import Path
from threading import RLock
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from codec.archive.format import PACK_HASH, Chunk, Contents, Tag, embedded_pack, read_contents, read_record
from codec.archive.json_lines import join
from codec.archive.members import Entry, Kind, Part, entries, is_tree
from codec.console import Advance, ignore_progress
from codec.devices import device_count, find_devices, kind_of
from codec.entropy.varint import Fields
from codec.errors import CodecError, DamagedError, DocumentError, FormatError, MismatchError, damaged
from codec.files import open_binary
from codec.pack.reader import Pack
from codec.pack.reader import open as open_pack
from codec.text.base import DocumentCoder
from codec.text.open_coder import default_policy, open_coder
from codec.text.policy import Policy
from codec.text.stored import unstore

if TYPE_CHECKING:
    from codec.text.solid.coder import SolidCoder

GROUP_BYTES = {"cpu": 1 << 20, "cuda": 1 << 24}
"""Bytes of coded documents that a device decodes together: many documents for each of a coder's slots."""

GROUP_TEXT = 1 << 26
"""The most original bytes that are in memory together for each device, unless a single record has more."""


def check_pack(contents: Contents, pack: Pack) -> None:
    """Raise MismatchError if an archive was made with another pack."""
    wanted = contents.header.pack
    if wanted is not None and wanted != bytes.fromhex(pack.sha256)[:PACK_HASH]:
        raise MismatchError(
            f"archive: made with pack {wanted.hex()}…, this is pack {pack.sha256[:16]}…; pass the pack it was made with"
        )


class ArchiveReader:
    """A reader of an archive on a seekable stream; several threads may use it at once.

    Args:
        stream: open for binary reading, or the path of a file.
        pack: the pack that the archive was made with. An archive that holds its pack needs none, nor does looking at
            records without the model.
        device: where the model runs, as of `codec.devices.find_devices`.
        most_bytes: the most bytes of all files and documents together.

    Raises:
        MismatchError: the archive was made with another pack.
        FormatError: the file is no archive, of a later version, or of over `most_bytes`.
        DamagedError: the file is truncated or damaged.

    >>> import io
    >>> from pathlib import Path
    >>> import codec
    >>> pack = codec.open(Path("artifacts/models/small.pack").read_bytes())
    >>> reader = codec.ArchiveReader(io.BytesIO(codec.encode(pack, [b"one", b"two", b"three"])), pack)
    >>> len(reader), reader.decode([2, 0])
    (3, [b'three', b'one'])
    """

    def __init__(
        self,
        stream: BinaryIO | str | Path,
        pack: Pack | None = None,
        device: str = "cpu",
        most_bytes: int | None = None,
    ):
        self._own = isinstance(stream, (str, Path))
        self._stream = open_binary(stream, "archive") if isinstance(stream, (str, Path)) else stream
        self._lock, self._device = RLock(), device
        self.contents = read_contents(self._stream)
        self.entries = entries(self.contents.members, self.contents.sizes)
        if most_bytes is not None and self.total_bytes > most_bytes:
            raise FormatError(f"archive: {self.total_bytes:,} bytes when restored, expected at most {most_bytes:,}")
        if pack:
            check_pack(self.contents, pack)
        self._pack = pack
        self._last: tuple[range, bytes | CodecError] = range(0), b""
        self._ends = np.cumsum(self.contents.sizes)
        frames = [
            part.record + part.member.documents for entry in self.entries for part in entry.parts if _is_lines(part)
        ]
        self._documents = np.delete(np.arange(len(self.contents.sizes)), frames)  # numbers of their records

    @cached_property
    def coder(self) -> DocumentCoder:
        """Return the decoder of records that need the model."""
        if self.contents.header.pack is None:
            raise DamagedError("archive: a record needs a model, which the archive does not name")
        return open_coder(self._opened(), self.policy, self._device)

    @cached_property
    def solid(self) -> "SolidCoder":
        """Return the decoder of blocks of solid streams, with a model where the archive names a pack."""
        from codec.text.solid.blocks import open_blocks  # compiled code, which archives without blocks do without

        if self.contents.header.pack is None:
            return open_blocks()
        return open_blocks(self._opened(), self.policy, self._device, self.coder)

    def _opened(self) -> Pack:
        """Return the pack that was given, or the pack that the archive holds."""
        if self._pack is None:
            blob = embedded_pack(self._stream, self.contents)
            if blob is None:
                wanted = self.contents.header.pack or b""
                raise MismatchError(f"archive: it needs the pack {wanted.hex()}…; pass that pack")
            pack = open_pack(blob)
            check_pack(self.contents, pack)
            self._pack = pack
        return self._pack

    @property
    def total_bytes(self) -> int:
        """Return the bytes of all files, or of all documents where there are no files."""
        if self.entries:
            return sum(entry.size for entry in self.entries)
        return int(self.contents.sizes.sum())

    @property
    def is_tree(self) -> bool:
        """Return whether the archive is restored to a folder."""
        return bool(self.entries) and is_tree(self.contents.members)

    def __len__(self) -> int:
        """Return the number of documents: records that decode alone. A block of a solid stream is a document, too."""
        return len(self._documents)

    def __enter__(self) -> "ArchiveReader":
        return self

    def __exit__(self, *ignored: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file, if a path was given."""
        if self._own:
            self._stream.close()

    @property
    def policy(self) -> Policy:
        """Return how the archive was coded; an `ArchiveWriter` with this policy codes the same way."""
        return self.contents.header.policy(default_policy(self._opened()).window)

    def decode(self, documents: Sequence[int] | None = None, advance: Advance = ignore_progress) -> list[bytes]:
        """Return the documents numbered `documents`, in that order, or all documents; errors as of `iterate`."""
        return list(self.iterate(documents, advance))

    def iterate(self, documents: Sequence[int] | None = None, advance: Advance = ignore_progress) -> Iterator[bytes]:
        """Yield the documents numbered `documents`, in that order, or all documents; they are decoded in groups.

        Args:
            documents: numbers; None for all.
            advance: called with bytes of payload.

        Raises:
            FormatError: there is no such document.
            DamagedError: a record is damaged.
            DocumentError: decoding gave other bytes than were encoded.
        """
        wanted = range(len(self)) if documents is None else documents
        for number in wanted:
            if not 0 <= number < len(self):
                raise FormatError(f"document {number}: the archive holds documents 0 to {len(self) - 1}")
        return self.records([int(self._documents[number]) for number in wanted], advance)

    def records(self, numbers: Sequence[int], advance: Advance = ignore_progress) -> Iterator[bytes]:
        """Yield the original bytes of records, frames of JSON Lines among them; otherwise as `iterate`."""
        for group in self._groups(numbers):
            yield from self._decode(group, advance)

    def _groups(self, wanted: Sequence[int]) -> Iterator[list[int]]:
        """Cut `wanted` into groups: at GROUP_BYTES of chunks, or GROUP_TEXT of original bytes, a device."""
        count = device_count(self._device)
        limit = GROUP_BYTES[kind_of(find_devices(self._device)[0])] * count
        group: list[int] = []
        size = text = 0
        for number in wanted:
            group.append(number)
            size += int(self.contents.lengths[number])
            text += int(self.contents.sizes[number])
            if size >= limit or text >= GROUP_TEXT * count:
                yield group
                group, size, text = [], 0, 0
        if group:
            yield group

    def _decode(self, group: Sequence[int], advance: Advance) -> Iterator[bytes]:
        with self._lock:
            with damaged():
                chunks = {number: self._chunk(number) for number in sorted(set(group))}
            sources = {target for target, _ in chunks.values()}
            found = self._modelled(dict(chunks.values()), sources, advance)
            found |= self._blocks(dict(chunks.values()), advance)
        for number in group:
            target, chunk = chunks[number]
            if target in found:
                yield found[target]
                continue
            with damaged():
                document = self._plain(target, chunk)
            _check(target, document, chunk.crc)
            advance(len(chunk.payload))
            yield document

    def _chunk(self, number: int) -> tuple[int, Chunk]:
        """Return the number and the chunk of the record with a record's bytes, perhaps of an earlier, equal record."""
        chunk = read_record(self._stream, self.contents, number)
        if chunk.tag != Tag.SAME:
            return number, chunk
        fields = Fields(chunk.payload, f"record {number}")
        target = number - fields.count(number, "records back")
        fields.end()
        found = read_record(self._stream, self.contents, target)
        sizes = self.contents.sizes
        if found.tag == Tag.SAME or found.crc != chunk.crc or sizes[target] != sizes[number]:
            raise FormatError(f"record {number}: record {target} does not equal it; the archive is damaged")
        return target, found

    def _modelled(self, chunks: Mapping[int, Chunk], sources: set[int], advance: Advance) -> dict[int, bytes]:
        payloads = {n: chunks[n].payload for n in sorted(sources) if chunks[n].tag == Tag.MODELLED}
        if not payloads:
            return {}
        sizes = {n: int(self.contents.sizes[n]) for n in payloads}
        found: dict[int, bytes] = {}
        coder = self.coder
        with damaged():
            for number, document in coder.decode(payloads, advance, sizes):
                found[number] = document
                _check(number, document, chunks[number].crc)
        return found

    def _blocks(self, chunks: Mapping[int, Chunk], advance: Advance) -> dict[int, bytes]:
        sizes = self.contents.sizes
        blocks = {n: (c.tag, c.payload, int(sizes[n])) for n, c in chunks.items() if c.tag in (Tag.MIXED, Tag.BYTES)}
        if not blocks:
            return {}
        from codec.text.solid.blocks import decode_blocks, open_blocks

        needs_model = any(tag == Tag.MIXED for tag, _, _ in blocks.values())
        solid = self.solid if needs_model else open_blocks()
        with damaged():
            found = dict(decode_blocks(solid, blocks, advance))
        for number, data in found.items():
            _check(number, data, chunks[number].crc)
        return found

    def _plain(self, number: int, chunk: Chunk) -> bytes:
        try:
            return unstore(chunk.payload, int(self.contents.sizes[number]))
        except FormatError as error:
            raise FormatError(f"document {number}: {error}") from error

    def names(self) -> list[str]:
        """Return the names of all files, in the archive's order."""
        return [entry.member.name for entry in self.entries if entry.member.kind in (Kind.FILE, Kind.JSON_LINES)]

    def find(self, name: str) -> Entry:
        """Return the file of a name. Raises FormatError where there is none."""
        for entry in self.entries:
            if entry.member.name == name and entry.member.kind in (Kind.FILE, Kind.JSON_LINES):
                return entry
        raise FormatError(f"file {name!r}: the archive has no such file; `underpar decode --list` names those it has")

    def open(self, name: str) -> "io.BufferedReader":
        """Open a file of the archive for reading and seeking; only the records that are read are decoded.

        Raises:
            FormatError: there is no such file.
        """
        return io.BufferedReader(_FileInArchive(self, self.find(name)), 1 << 16)

    def block(self, part: Part, offset: int, count: int) -> tuple[int, bytes]:
        """Return (begin, bytes) of whole records of a part of a file: `count` bytes from `offset`, or all the rest.

        Raises:
            FormatError, DocumentError: as `iterate` does.
        """
        if _is_lines(part):
            *texts, frame = self.records(range(part.record, part.record + part.member.documents + 1))
            return 0, b"".join(join(iter(texts), frame, part.member.size))
        ends, sizes = self._ends, self.contents.sizes
        first = int(np.searchsorted(ends, part.begin + offset, "right"))
        last = int(np.searchsorted(ends, part.begin + min(offset + count, part.member.size)))
        begin = int(ends[first] - sizes[first]) - part.begin
        data = self._joined(range(first, last + 1))
        return max(0, begin), data[max(0, -begin) :][: part.member.size - max(0, begin)]

    def _joined(self, numbers: range) -> bytes:
        """Return the bytes of consecutive records; the last answer is kept, an error too, for other files in them."""
        asked, found = self._last
        if asked != numbers:
            try:
                found = b"".join(self.records(numbers))
            except CodecError as error:
                found = error
            self._last = numbers, found
        if isinstance(found, CodecError):
            raise found
        return found


def _is_lines(part: Part) -> bool:
    return part.member.kind == Kind.JSON_LINES


class _FileInArchive(io.RawIOBase):
    """A file of an archive, open for reading; the records that were read last are kept."""

    def __init__(self, reader: ArchiveReader, entry: Entry):
        self._reader, self._entry, self._at = reader, entry, 0
        self._begin, self._block = 0, b""

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to an offset; as for any file."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._entry.size}[whence]
        if base + offset < 0:
            raise ValueError(f"offset {base + offset}: expected at least 0")
        self._at = base + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer up to the end of the records at the current offset."""
        if not self._begin <= self._at < self._begin + len(self._block):
            self._begin, self._block = self._read_block(len(buffer))
        start = self._at - self._begin
        data = self._block[start : start + len(buffer)]
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def _read_block(self, count: int) -> tuple[int, bytes]:
        begin = 0
        for part in self._entry.parts:
            if begin <= self._at < begin + part.member.size:
                at, data = self._reader.block(part, self._at - begin, count)
                return begin + at, data
            begin += part.member.size
        return self._at, b""


def _check(number: int, document: bytes, crc: int) -> None:
    if zlib.crc32(document) != crc:
        raise DocumentError(
            f"CRC-32 of the decoded bytes is {zlib.crc32(document):08x}, the archive says {crc:08x}; "
            "the archive is damaged or the arithmetic of this machine is not IEEE",
            number,
            document,
        )


def decode(model: Pack, packed: bytes, documents: Sequence[int] | None = None, device: str = "cpu") -> list[bytes]:
    """Decode an archive: return its documents, or the documents numbered `documents`.

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
