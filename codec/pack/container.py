"""Read and write the container of a pack: magic, version, named sections, a table with CRC-32 of each, and a SHA-256.

Layout, little-endian: `UPAK`, u16 version; the sections without gaps; the table, for each section its name (12 bytes,
padded with zeros), u64 length and u32 CRC-32; u16 number of sections, u32 CRC-32 of the table; then 32 bytes of SHA-256
of all that precedes. The table comes last, so that a file can be written without knowing how long a section gets.
"""

import hashlib
import mmap
import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from codec.errors import FormatError

IN_MEMORY = 1 << 26
"""Files up to this size are read and checked whole; of larger ones, each tensor is read and checked when asked for."""

MAGIC = b"UPAK"
VERSION = 1
_HEAD = struct.Struct("<4sH")
_ENTRY = struct.Struct("<12sQI")
_END = struct.Struct("<HI")
_DIGEST = 32
_MOST_SECTIONS = 16
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Source:
    """A file or bytes to read in pieces. Of a file only the path is kept, so that a source can be copied."""

    content: bytes | Path

    @cached_property
    def size(self) -> int:
        """Return the number of bytes."""
        return len(self.content) if isinstance(self.content, bytes) else self.content.stat().st_size

    def read(self, offset: int, length: int) -> bytes:
        """Return `length` bytes from `offset` on, or fewer where the source ends."""
        if isinstance(self.content, bytes):
            return self.content[offset : offset + length]
        with self.content.open("rb") as file:
            file.seek(offset)
            return file.read(length)

    def chunks(self, length: int) -> Iterator[bytes]:
        """Yield the first `length` bytes in pieces."""
        if isinstance(self.content, bytes):
            yield self.content[:length]
            return
        with self.content.open("rb") as file:
            while length and (chunk := file.read(min(_CHUNK, length))):
                length -= len(chunk)
                yield chunk


@dataclass(frozen=True)
class Section:
    """The place of a section in a container, and its checksum."""

    offset: int
    length: int
    crc: int


def write_container(sections: dict[str, bytes]) -> bytes:
    """Return the file that holds `sections`, in their order."""
    return b"".join(container_chunks((name, [data]) for name, data in sections.items()))


def container_chunks(sections: Iterable[tuple[str, Iterable[bytes]]]) -> Iterator[bytes]:
    """Yield the bytes of a container, given the sections' names and pieces in order."""
    digest, table = hashlib.sha256(), b""

    def counted(data: bytes) -> bytes:
        digest.update(data)
        return data

    yield counted(_HEAD.pack(MAGIC, VERSION))
    count = 0
    for name, pieces in sections:
        length = crc = 0
        for piece in pieces:
            length, crc = length + len(piece), zlib.crc32(piece, crc)
            yield counted(piece)
        table += _ENTRY.pack(name.encode(), length, crc)
        count += 1
    yield counted(table + _END.pack(count, zlib.crc32(table)))
    yield digest.digest()


def read_table(source: Source) -> dict[str, Section]:
    """Return where the sections of a container lie, without reading the sections.

    Raises:
        FormatError: not a pack, of another version, truncated, or with a damaged table.
    """
    start = source.read(0, _HEAD.size)
    if start[:4] != MAGIC:
        raise FormatError(f"pack: begins with {start[:4]!r}, expected {MAGIC!r}; this is not a .pack file")
    least = _HEAD.size + _END.size + _DIGEST
    if source.size < least:
        raise FormatError(f"pack: {source.size} bytes, expected at least {least}; the file is truncated")
    version = _HEAD.unpack(start)[1]
    if version != VERSION:
        raise FormatError(
            f"pack: format version {version}, this underpar reads {VERSION}; use the underpar that wrote it"
        )
    end = source.size - _DIGEST - _END.size
    count, crc = _END.unpack(source.read(end, _END.size))
    table = source.read(end - count * _ENTRY.size, count * _ENTRY.size) if count <= _MOST_SECTIONS else b""
    if count > _MOST_SECTIONS or count * _ENTRY.size > end - _HEAD.size or zlib.crc32(table) != crc:
        raise FormatError("pack: CRC-32 of the table at its end is wrong; the file is truncated or damaged")
    found: dict[str, Section] = {}
    offset = _HEAD.size
    for raw_name, length, section_crc in _ENTRY.iter_unpack(table):
        name = raw_name.rstrip(b"\0").decode("ascii", errors="backslashreplace")
        found[name] = Section(offset, length, section_crc)
        offset += length
    if offset + len(table) != end or len(found) != count:
        raise FormatError(f"pack: {source.size} bytes, but its sections end at {offset}; bytes were added or lost")
    return found


def read_section(source: Source, sections: dict[str, Section], name: str) -> bytes:
    """Return the bytes of a section.

    Raises:
        FormatError: the section is missing, or its CRC-32 is wrong.
    """
    if name not in sections:
        raise FormatError(f"pack: sections [{name!r}] are missing; the file was not written by underpar")
    section = sections[name]
    data = source.read(section.offset, section.length)
    if len(data) != section.length or zlib.crc32(data) != section.crc:
        raise FormatError(
            f"pack: CRC-32 of section {name!r} (offset {section.offset}, {section.length} bytes) is wrong; fetch the "
            "file again"
        )
    return data


def check_digest(source: Source) -> str:
    """Return the SHA-256 of a container's whole file in hex.

    Raises:
        FormatError: the digest at the file's end is not that of its content.
    """
    content, whole = hashlib.sha256(), b""
    for chunk in source.chunks(source.size - _DIGEST):
        content.update(chunk)
    file, whole = content.copy(), source.read(source.size - _DIGEST, _DIGEST)
    if content.digest() != whole:
        raise FormatError(
            f"pack: SHA-256 of the content is {content.hexdigest()[:16]}…, the file says {whole.hex()[:16]}…; "
            "fetch the file again"
        )
    file.update(whole)
    return file.hexdigest()


def read_container(blob: bytes) -> dict[str, bytes]:
    """Return the sections of a container.

    Raises:
        FormatError: not a pack, of another version, truncated, or damaged (the section is named).
    """
    source = Source(blob)
    table = read_table(source)
    sections = {name: read_section(source, table, name) for name in table}
    check_digest(source)
    return sections


def open_source(source: Any) -> Source:
    """Open a pack: read it, or keep the path of a file larger than IN_MEMORY.

    Args:
        source: bytes, a path, or a file that is open for reading.

    Raises:
        FormatError: there is no such file, or `source` is something else.
    """
    if isinstance(source, (str, Path)):
        try:
            path = Path(source)
            return Source(path.absolute() if path.stat().st_size > IN_MEMORY else path.read_bytes())
        except OSError as error:
            raise FormatError(
                f"pack {source}: {error.strerror}; pass the path of an existing, readable file"
            ) from error
    if isinstance(source, (bytes, bytearray, memoryview, mmap.mmap)):
        return Source(bytes(source))
    if hasattr(source, "read"):
        content = source.read()
        if isinstance(content, bytes):
            return Source(content)
    raise FormatError(f"pack: a {type(source).__name__}, expected bytes, a path or a binary file")
