"""Write and read the bytes of an archive (`.upz`): header, chunks, footer (`docs/formats.md`).

All numbers are little-endian; a varint has seven bits a byte, the lowest first, and the highest bit set in all bytes
but the last. The layout is

- a header: `UPZ`, a byte of version and flags, and where a model was used the first eight bytes of the pack's SHA-256;
- chunks: a varint `8 * length + tag`, then, for all but a footer, the CRC-32 of the original bytes, then the payload;
- a footer: the last chunk, with an index of all records and the files that they make up, followed by the CRC-32 of
  header and footer, the footer's size as a varint whose bytes are in reverse order, and one byte `Z`. It names the
  model where the header does not: the first records of a stream may need none.

An append writes more chunks and another footer behind the old footer. Nothing is ever rewritten, and chunks are
self-delimiting, so a stream can be written without seeking.
"""

import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from codec.archive.journal import MAGIC as JOURNAL
from codec.archive.members import Member, read_members, write_members
from codec.entropy.varint import Fields, varint, varints
from codec.errors import FormatError, damaged
from codec.pack.container import MAGIC as PACK_MAGIC
from codec.text.policy import Adaptation, Policy
from codec.zstd import shrink, unshrink

MAGIC, END_MAGIC = b"UPZ", b"Z"
VERSION = 1
PACK_HASH = 8
"""Bytes of a pack's SHA-256 that name the pack. Two of a million packs share a name with a probability of 2^-25."""

_LEAST_FOOTER = 8
_U32 = struct.Struct("<I")
_LEAST_RECORD = 5  # bytes of a chunk: a head of one byte and a CRC-32
_MAX_RECORD = 1 << 30  # original bytes, which are in memory together
_BLOCK = 1 << 24


def _most_index(size: int) -> int:
    """Return the most bytes of the index of an archive of `size` bytes. Names alike shrink to a tenth."""
    return (1 << 16) + 16 * size


def _most_members(size: int) -> int:
    """Return the most members of an archive of `size` bytes."""
    return (1 << 10) + size


class HeaderFlag(IntEnum):
    """The flags of a header, beside its version."""

    MODEL = 16
    RECALL = 32
    WINDOW = 64  # other than the model's own


class FooterFlag(IntEnum):
    """The flags of a footer."""

    ONE_RECORD = 1
    ONE_MEMBER = 2
    APPENDED = 4  # there are gaps between records
    SHRUNK = 8  # the index is a zstandard frame
    NAMED = 16  # the index names the model in place of the header


_MODEL, _RECALL, _WINDOW = HeaderFlag
_ONE_RECORD, _ONE_MEMBER, _APPENDED, _SHRUNK, _NAMED = FooterFlag


class Tag(IntEnum):
    """The kinds of chunks."""

    STORED = 0  # original bytes, under a general compressor (`codec.text.stored`)
    MODELLED = 1  # an independent document: tokens of the model, then edits
    MIXED = 2  # a block of a solid stream: contexts mixed with the model
    BYTES = 3  # a block of a solid stream: contexts alone
    SAME = 4  # the bytes of an earlier record: how many records back, as a varint
    PACK = 5  # the pack itself
    FOOTER = 7


WITH_MODEL = (Tag.MODELLED, Tag.MIXED)
"""The kinds of records that a language model takes part in."""

RECORDS = (Tag.STORED, Tag.MODELLED, Tag.MIXED, Tag.BYTES, Tag.SAME)


@dataclass(frozen=True)
class Header:
    """The model that an archive was made with; empty where no record needs a model."""

    pack: bytes | None = None  # the first bytes of the pack's SHA-256
    adaptation: Adaptation = Adaptation.NONE
    window: int | None = None  # tokens, where it is not the model's own

    def policy(self, window: int) -> Policy:
        """Return the context policy, given the window of the archive's model in tokens."""
        return Policy(self.window or window, self.adaptation)


@dataclass(frozen=True)
class Chunk:
    """A chunk as it stands in the file."""

    tag: Tag
    crc: int  # CRC-32 of the original bytes; of a footer 0
    payload: bytes


@dataclass(frozen=True)
class Index:
    """The contents of an archive's header and footer."""

    opening: Header  # what the file begins with
    header: Header  # the same, or what the footer says in its place
    lengths: NDArray[np.int64]  # [records]: bytes of each chunk
    sizes: NDArray[np.int64]  # [records]: original bytes of each
    members: list[Member]
    gaps: list[tuple[int, int]]
    """(record, bytes) for bytes before a record that are no records: a pack, or footers that appends have replaced."""


@dataclass(frozen=True)
class Contents(Index):
    """An index, with the offsets of everything in the file."""

    first: int  # offset behind the header
    offsets: NDArray[np.int64]  # [records]: where each chunk begins
    end: int  # offset of the footer


def write_header(header: Header) -> bytes:
    """Return the header of an archive.

    >>> write_header(Header())
    b'UPZ\\x01'
    """
    return MAGIC + _write_model(header)


def _write_model(header: Header) -> bytes:
    flags = VERSION
    if header.pack is not None:
        flags |= _MODEL
    if header.adaptation == Adaptation.RECALL:
        flags |= _RECALL
    if header.window is not None:
        flags |= _WINDOW
    window = varint(header.window) if header.window is not None else b""
    return bytes([flags]) + (header.pack or b"") + window


def write_chunk(tag: Tag, crc: int, payload: bytes) -> bytes:
    """Return the chunk of a record or a pack; `crc` is the CRC-32 of the original bytes."""
    return varint(8 * len(payload) + tag) + _U32.pack(crc) + payload


def write_footer(contents: Index) -> bytes:
    """Return the footer of an archive with these records and members."""
    count, one_member = len(contents.sizes), len(contents.members) == 1
    flags = (
        (_ONE_RECORD if count == 1 else 0) | (_ONE_MEMBER if one_member else 0) | (_APPENDED if contents.gaps else 0)
    )
    named = contents.header != contents.opening
    flags |= _NAMED if named else 0
    index = _write_model(contents.header) if named else b""
    index += b"" if count == 1 else varint(count)
    index += varints(contents.lengths[:-1]) + varints(contents.sizes)
    if contents.gaps:
        index += varint(len(contents.gaps)) + b"".join(varint(n) + varint(size) for n, size in contents.gaps)
    index += b"" if one_member else varint(len(contents.members))
    index += write_members(contents.members)
    if len(shrunk := shrink(index)) < len(index):
        size = int(contents.lengths.sum()) + sum(gap for _, gap in contents.gaps) + len(shrunk)
        if len(index) <= _most_index(size) and len(contents.members) <= _most_members(size):
            index, flags = shrunk, flags | _SHRUNK
    chunk = varint(8 * (1 + len(index)) + Tag.FOOTER) + bytes([flags]) + index
    crc = zlib.crc32(chunk, zlib.crc32(write_header(contents.opening)))
    size = len(chunk) + _U32.size + len(END_MAGIC)
    return chunk + _U32.pack(crc) + varint(_with_own(size))[::-1] + END_MAGIC


def _with_own(size: int) -> int:
    """Return `size` plus the bytes of a varint that states this sum."""
    own = 1
    while len(varint(size + own)) > own:
        own += 1
    return size + own


def read_contents(stream: BinaryIO) -> Contents:
    """Read header and footer of a seekable archive, without reading the records.

    Raises:
        FormatError: not an archive, or of another version.
        DamagedError: truncated, or with other bytes than were written.
    """
    stream.seek(0)
    header = read_header(stream)
    with damaged():
        return _read_index(stream, header)


def _read_index(stream: BinaryIO, opening: Header) -> Contents:
    """Read the footer of an archive, behind whose header the stream is."""
    header, first = opening, stream.tell()
    size = stream.seek(0, 2)
    end, flags, index = _read_footer(stream, opening, first, size)
    fields = Fields(index, "archive: index")
    if flags & _NAMED:
        header = _read_model(fields.take(1)[0], fields.take, fields.number)
    most = (end - first) // _LEAST_RECORD
    count = 1 if flags & _ONE_RECORD else fields.count(most, "records")
    lengths = fields.array(max(0, count - 1))
    sizes = fields.array(count)
    if (sizes > _MAX_RECORD).any():
        raise FormatError(
            f"archive: a record of {sizes.max()} bytes, expected at most {_MAX_RECORD}; the file is damaged"
        )
    gaps = []
    if flags & _APPENDED:
        gaps = [(fields.number(), fields.number()) for _ in range(fields.count((end - first) // _LEAST_FOOTER, "gaps"))]
    members = read_members(fields, 1 if flags & _ONE_MEMBER else fields.count(_most_members(size), "members"), sizes)
    fields.end()
    offsets, lengths = _place(first, end, count, lengths, gaps)
    return Contents(opening, header, lengths, sizes, members, gaps, first, offsets, end)


def _place(
    first: int, end: int, count: int, lengths: NDArray[np.int64], gaps: Sequence[tuple[int, int]]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return where each record begins, and its bytes. Raises FormatError where the records do not fit the file."""
    before = np.zeros(count + 1, np.int64)
    for n, size in gaps:
        if n > count or size > end:
            raise FormatError(f"archive: {size} bytes before record {n} of {count}; the file is damaged")
        before[n] += size
    if (lengths > end).any() or float(lengths.sum(dtype=np.float64)) > end:  # before a sum of int64 could wrap around
        raise FormatError(f"archive: records of more than the {end} bytes before its footer; the file is damaged")
    known = first + int(before.sum()) + int(lengths.sum())
    rest = end - known
    if known > end or (lengths < _LEAST_RECORD).any() or (rest < _LEAST_RECORD if count else rest):
        raise FormatError(f"archive: records of {known - first} bytes in {end - first}; the file is damaged")
    lengths = np.append(lengths, [rest] if count else []).astype(np.int64)
    offsets = first + np.cumsum(before[:count]) + np.cumsum(lengths) - lengths
    return offsets, lengths


def read_header(stream: BinaryIO) -> Header:
    """Read the header. Raises FormatError for something else, or for another version."""
    head = stream.read(len(MAGIC) + 1)
    if head == JOURNAL:
        raise FormatError("archive: what an interrupted encode has done, no archive yet; end it with encode --resume")
    if head == PACK_MAGIC:
        raise FormatError(
            "archive: this is a pack, no archive; `underpar unpack` restores its weights, and "
            "`underpar encode --model` codes text with it"
        )
    if head[: len(MAGIC)] != MAGIC:
        raise FormatError(f"archive: begins with {head!r}, expected {MAGIC!r}; this is not a .upz file")
    if len(head) <= len(MAGIC):
        raise FormatError(f"archive: {len(head)} bytes; the file is truncated")
    return _read_model(
        head[-1],
        lambda count: _read_exactly(stream, count, len(MAGIC) + 1),
        lambda: _read_varint(stream, len(MAGIC) + 1),
    )


def _read_model(head: int, take: Callable[[int], bytes], number: Callable[[], int]) -> Header:
    version, flags = head & 15, head & ~15
    if version != VERSION or flags & ~(_MODEL | _RECALL | _WINDOW):
        raise FormatError(
            f"archive: format version {version} with flags {flags:#x}, this underpar reads {VERSION}; "
            "use the underpar that wrote it"
        )
    pack = take(PACK_HASH) if flags & _MODEL else None
    window = number() if flags & _WINDOW else None
    if window == 0 or (pack is None and flags & (_RECALL | _WINDOW)):
        raise FormatError(f"archive: a window of {window} tokens, flags {flags:#x}; the file is damaged")
    return Header(pack, Adaptation.RECALL if flags & _RECALL else Adaptation.NONE, window)


def _read_footer(stream: BinaryIO, header: Header, first: int, size: int) -> tuple[int, int, bytes]:
    """Return (offset, flags, index) of the footer of an archive of `size` bytes, whose chunks begin at `first`."""
    stream.seek(max(first, size - 12))
    tail = stream.read(12)
    if tail[-1:] != END_MAGIC:
        raise FormatError(f"archive: {size} bytes do not end in a footer; the file is truncated or an append broke off")
    length = own = 0
    for byte in tail[-2::-1]:
        length |= (byte & 127) << 7 * own
        own += 1
        if byte < 128:
            break
    begin = size - length
    if begin < first or length < _U32.size + own + 3:
        raise FormatError(f"archive: footer of {length} bytes in a file of {size}; the file is damaged")
    stream.seek(begin)
    data = _read_exactly(stream, length, begin)
    chunk, crc = data[: -_U32.size - own - 1], _U32.unpack(data[-_U32.size - own - 1 : -own - 1])[0]
    fields = Fields(chunk, "archive: footer")
    head = fields.number()
    if zlib.crc32(chunk, zlib.crc32(write_header(header))) != crc or head & 7 != Tag.FOOTER or head >> 3 != fields.left:
        raise FormatError(f"archive: the footer at offset {begin} is damaged; `underpar salvage` reads what is whole")
    flags, index = fields.take(1)[0], fields.take(fields.left)
    if flags & _SHRUNK:
        index = unshrink(index, _most_index(size), "archive: index")
    return begin, flags, index


def read_record(stream: BinaryIO, contents: Contents, number: int) -> Chunk:
    """Read the chunk of a record. Raises FormatError where it is damaged."""
    offset, length = int(contents.offsets[number]), int(contents.lengths[number])
    stream.seek(offset)
    chunk = read_chunk(stream)
    if chunk is None or chunk.tag not in RECORDS or stream.tell() != offset + length:
        raise FormatError(f"record {number}: its chunk at offset {offset} does not have {length} bytes; it is damaged")
    return chunk


def embedded_pack(stream: BinaryIO, contents: Contents) -> bytes | None:
    """Return the pack that an archive holds; None where it holds none. Raises FormatError for a damaged pack."""
    if not contents.gaps or contents.gaps[0][0] != 0:
        return None
    stream.seek(contents.first)
    chunk = read_chunk(stream)
    if chunk is None or chunk.tag != Tag.PACK:
        return None
    if zlib.crc32(chunk.payload) != chunk.crc:
        raise FormatError(f"archive: the pack at offset {contents.first} is damaged; pass the pack")
    return chunk.payload


def read_chunk(stream: BinaryIO) -> Chunk | None:
    """Read the chunk that begins here; return None at the end of the stream.

    The payload of a footer is its index; the rest of the footer is skipped.

    Raises:
        FormatError: there is no whole chunk.
    """
    offset = stream.tell()
    if not (head := stream.read(1)):
        return None
    value = head[0] & 127
    if head[0] > 127:
        value |= _read_varint(stream, offset) << 7
    try:
        tag, length = Tag(value & 7), value >> 3
    except ValueError:
        raise FormatError(f"archive: chunk at offset {offset} has tag {value & 7}; the file is damaged") from None
    if tag == Tag.FOOTER:
        payload = _read_exactly(stream, length, offset)
        own = 1
        while len(varint(stream.tell() - offset + _U32.size + own + 1)) > own:
            own += 1
        _read_exactly(stream, _U32.size + own + 1, offset)
        return Chunk(tag, 0, payload)
    crc = _U32.unpack(_read_exactly(stream, _U32.size, offset))[0]
    return Chunk(tag, crc, _read_exactly(stream, length, offset))


def _read_varint(stream: BinaryIO, offset: int) -> int:
    value = 0
    for shift in range(0, 42, 7):
        byte = _read_exactly(stream, 1, offset)[0]
        value |= (byte & 127) << shift
        if byte < 128:
            return value
    raise FormatError(f"archive: the number at offset {offset} has over 42 bits; the file is damaged")


def _read_exactly(stream: BinaryIO, count: int, offset: int) -> bytes:
    data = b""
    while len(data) < count and (block := stream.read(min(count - len(data), _BLOCK))):
        data += block
    if len(data) != count:
        raise FormatError(
            f"archive: what begins at offset {offset} needs {count} bytes, found {len(data)}; the file is truncated"
        )
    return data
