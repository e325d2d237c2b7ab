"""The bytes of an archive (`.upz`): header, chunks, footer. What is in them is `codec.archive.writer`'s business.

Layout, little-endian. Header: `UPTX`, u16 version, u32 length, JSON (SHA-256 of the pack, window, adaptation),
u32 CRC-32 of all of it. Then chunks: a varint `4 * length + tag`; tag 0 (stored) and 1 (modelled) are documents, with
the CRC-32 of the original bytes and `length` bytes of payload; tag 2 is a footer: `length` bytes of
zstandard-compressed JSON (the offset of every document so far, as differences, the size of the longest, and metadata),
their CRC-32, u32 size of the whole footer chunk, and `UPTE`. An archive ends with a footer; appending writes more
documents and a new one behind it. Nothing is ever rewritten, and chunks are self-delimiting, so that a stream can be
written and read without seeking.
"""

import json
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

from codec.errors import FormatError
from codec.text.documents import MAX_DOCUMENT, MODELLED, STORED
from codec.text.policy import Adaptation, Policy
from codec.zstd import shrink, unshrink

MAGIC, END_MAGIC = b"UPTX", b"UPTE"
VERSION = 2
_FOOTER = 2
_HEAD = struct.Struct("<4sHI")
_U32 = struct.Struct("<I")
_TRAILER = struct.Struct("<II4s")  # CRC-32, size of the footer chunk, END_MAGIC
_MAX_HEADER = 1 << 20
_MAX_INDEX = 1 << 28
_MAX_CHUNK = 1 << 30


@dataclass(frozen=True)
class Contents:
    """What header and footer say."""

    header: dict[str, Any]
    offsets: list[int]  # of every document
    end: int  # offset of the footer
    longest: int  # bytes of the longest document
    metadata: dict[str, Any]

    @property
    def policy(self) -> Policy:
        return Policy(self.header["window"], Adaptation(self.header["adaptation"]))


def write_header(pack: str, policy: Policy) -> bytes:
    """The header of an archive made with the pack whose SHA-256 is `pack`."""
    header = json.dumps({"pack": pack, **vars(policy)}).encode()
    head = _HEAD.pack(MAGIC, VERSION, len(header)) + header
    return head + _U32.pack(zlib.crc32(head))


def write_chunk(mode: int, crc: int, payload: bytes) -> bytes:
    """A document: how it is coded (STORED or MODELLED), the CRC-32 of its original bytes, and the code."""
    return _varint(4 * len(payload) + mode) + _U32.pack(crc) + payload


def write_footer(offsets: Sequence[int], longest: int, metadata: dict[str, Any]) -> bytes:
    """The footer behind documents at `offsets`."""
    deltas = [offset - last for offset, last in zip(offsets, [0, *offsets], strict=False)]
    index = {"offsets": deltas, "longest": longest, "metadata": metadata}
    payload = shrink(json.dumps(index, separators=(",", ":")).encode())
    chunk = _varint(4 * len(payload) + _FOOTER) + payload
    return chunk + _TRAILER.pack(zlib.crc32(payload), len(chunk) + _TRAILER.size, END_MAGIC)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def read_contents(stream: BinaryIO) -> Contents:
    """Header and footer of an archive; the documents are not read.

    Raises:
        FormatError: not an archive, of a later version, truncated or damaged.
    """
    stream.seek(0)
    header = _read_header(stream)
    first = stream.tell()
    offsets, end, longest, metadata = _read_footer(stream, first)
    stream.seek(first)
    _skip_footers(stream, begin := [*offsets, end][0])
    if stream.tell() != begin:
        raise FormatError(
            f"archive: a document at offset {stream.tell()} is not in the footer's index, which begins with {begin}; "
            "the footer is of another archive"
        )
    return Contents(header, offsets, end, longest, metadata)


def read_record(stream: BinaryIO, contents: Contents, number: int) -> tuple[int, int, bytes]:
    """(mode, CRC-32 of the original bytes, payload) of a document. Raises FormatError where it is damaged."""
    offset, following = contents.offsets[number], following_offset(contents, number)
    stream.seek(offset)
    record = _read_document(stream, offset)
    _skip_footers(stream, following)
    if stream.tell() != following:
        raise FormatError(
            f"document {number}: its chunk does not end where the next begins, at offset {following}; "
            "the archive is damaged"
        )
    return record


def following_offset(contents: Contents, number: int) -> int:
    """Where the document after `number`, or the footer, begins."""
    return contents.offsets[number + 1] if number + 1 < len(contents.offsets) else contents.end


def read_mode(stream: BinaryIO, offset: int) -> int:
    """How the document at `offset` is coded."""
    return _read_head(stream, stream.seek(offset))[0]


def documents_of(chunks: BinaryIO, size: int) -> Iterator[tuple[int, int]]:
    """(offset, CRC-32 of the original bytes) of documents whose chunks are all that `chunks` holds, `size` bytes."""
    while (offset := chunks.tell()) < size:
        _, crc, _ = _read_document(chunks, offset)
        yield offset, crc


def _read_header(stream: BinaryIO) -> dict[str, Any]:
    head = stream.read(_HEAD.size)
    if head[:4] != MAGIC:
        raise FormatError(f"archive: begins with {head[:4]!r}, expected {MAGIC!r}; this is not a .upz file")
    if len(head) < _HEAD.size:
        raise FormatError(f"archive: {len(head)} bytes; the file is truncated")
    _, version, length = _HEAD.unpack(head)
    if version != VERSION:
        raise FormatError(
            f"archive: format version {version}, this underpar reads {VERSION}; use the underpar that wrote it"
        )
    if length > _MAX_HEADER:
        raise FormatError(f"archive: header of {length} bytes, expected at most {_MAX_HEADER}")
    body = stream.read(length + _U32.size)
    if len(body) != length + _U32.size:
        raise FormatError(f"archive: the header of {length} bytes is truncated")
    if zlib.crc32(head + body[:length]) != _U32.unpack(body[length:])[0]:
        raise FormatError("archive: CRC-32 of the header is wrong; fetch the file again")
    try:
        header = json.loads(body[:length])
        if header.keys() != {"pack", "window", "adaptation"}:
            raise ValueError(f"expected pack, window and adaptation, found {header}")
        if not (isinstance(header["pack"], str) and type(header["window"]) is int):
            raise ValueError(f"no pack or no window: {header}")
        if header["adaptation"] not in list(Adaptation):
            raise ValueError(f"no such adaptation: {header}")
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        raise FormatError(f"archive: header is not what underpar writes ({error!r})") from error
    return header


def _read_footer(stream: BinaryIO, first: int) -> tuple[list[int], int, int, dict[str, Any]]:
    """The offset of every document, that of the footer, the longest document, and the metadata.

    Chunks begin at offset `first`.
    """
    size = stream.seek(0, 2)
    stream.seek(max(first, size - _TRAILER.size))
    trailer = stream.read(_TRAILER.size)
    if len(trailer) < _TRAILER.size or trailer[-4:] != END_MAGIC:
        raise FormatError(f"archive: {size} bytes do not end in a footer; the file is truncated or an append broke off")
    crc, length, _ = _TRAILER.unpack(trailer)
    begin = size - length
    if begin < first:
        raise FormatError(f"archive: footer of {length} bytes in a file of {size}; the file is damaged")
    stream.seek(begin)
    tag, payload_length = _read_head(stream, begin)
    payload = _read_exactly(stream, payload_length, begin) if payload_length < length else b""
    if tag != _FOOTER or stream.tell() != size - _TRAILER.size or zlib.crc32(payload) != crc:
        raise FormatError(f"archive: the footer at offset {begin} is damaged; fetch the file again")
    try:
        footer = json.loads(unshrink(payload, _MAX_INDEX, "archive: footer"))
        deltas, longest, metadata = footer["offsets"], footer["longest"], footer["metadata"]
        if not all(type(delta) is int and delta > 0 for delta in deltas) or not isinstance(metadata, dict):
            raise ValueError("index out of order")
        if type(longest) is not int or not 0 <= longest <= MAX_DOCUMENT:
            raise ValueError(f"longest document of {longest!r} bytes, expected at most {MAX_DOCUMENT}")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        if isinstance(error, FormatError):
            raise
        raise FormatError(f"archive: the footer at offset {begin} is not an index ({error})") from error
    offsets, position = [], 0
    for delta in deltas:
        position += delta
        offsets.append(position)
    if offsets and not first <= offsets[0] <= offsets[-1] < begin:
        raise FormatError(f"archive: index points outside the file ({offsets[0]} to {offsets[-1]} of {begin})")
    return offsets, begin, longest, metadata


def _skip_footers(stream: BinaryIO, end: int) -> None:
    """Go on to `end` as far as the chunks before it are footers, those that later appends have replaced."""
    while (begin := stream.tell()) < end:
        tag, length = _read_head(stream, begin)
        if tag != _FOOTER:
            return
        stream.seek(length + _TRAILER.size, 1)


def _read_exactly(stream: BinaryIO, count: int, offset: int) -> bytes:
    data = stream.read(min(count, _MAX_CHUNK))
    if len(data) != count:
        raise FormatError(
            f"archive: chunk at offset {offset} needs {count} bytes, found {len(data)}; the file is truncated"
        )
    return data


def _read_head(stream: BinaryIO, offset: int) -> tuple[int, int]:
    """(tag, length) of the chunk that begins here."""
    value = 0
    for shift in range(0, 42, 7):
        byte = _read_exactly(stream, 1, offset)[0]
        value |= (byte & 127) << shift
        if byte < 128:
            return value & 3, value >> 2
    raise FormatError(f"archive: chunk at offset {offset} has no length; the file is damaged")


def _read_document(stream: BinaryIO, offset: int) -> tuple[int, int, bytes]:
    """(mode, CRC-32 of the original bytes, payload) of the document whose chunk begins here."""
    tag, length = _read_head(stream, offset)
    if tag not in (STORED, MODELLED):
        raise FormatError(f"archive: chunk at offset {offset} has tag {tag}, expected a document; the file is damaged")
    crc = _U32.unpack(_read_exactly(stream, 4, offset))[0]
    return tag, crc, _read_exactly(stream, length, offset)
