"""An archive (`.upz`): documents coded with a pack, one after the other, each decodable without the others.

Layout, little-endian. Header: `UPTX`, u16 version, u32 length, JSON (SHA-256 of the pack, context policy), u32 CRC-32
of all of it. Then chunks: a varint `4 * length + tag`; tag 0 (stored) and 1 (modelled) are documents, with the CRC-32
of the original bytes and `length` bytes of payload; tag 2 is a footer: `length` bytes of zstandard-compressed JSON
(the offset of every document so far, as differences, and metadata), their CRC-32, u32 size of the whole footer chunk,
and `UPTE`. An archive ends with a footer; appending writes more documents and a new one behind it. Nothing is ever
rewritten, and chunks are self-delimiting, so that a stream can be written and read without seeking.
"""

import json
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any, BinaryIO

from codec.coder import Coder
from codec.console import Advance, ignore_progress
from codec.container import shrink, unshrink
from codec.documents import MODELLED, STORED, Record, read_stored
from codec.errors import DocumentError, FormatError, MismatchError
from codec.pack import Pack

MAGIC, END_MAGIC = b"UPTX", b"UPTE"
VERSION = 1
_FOOTER = 2
_HEAD = struct.Struct("<4sHI")
_U32 = struct.Struct("<I")
_TRAILER = struct.Struct("<II4s")  # CRC-32, size of the footer chunk, END_MAGIC
_MAX_HEADER = 1 << 20
_MAX_INDEX = 1 << 28
_MAX_CHUNK = 1 << 30


@dataclass(frozen=True)
class Policy:
    """How a document's tokens see each other: windows of `window` tokens, each `stride` after the one before."""

    window: int
    stride: int


def make_coder(pack: Pack, policy: Policy | None = None, device: str = "cpu") -> Coder:
    """The coder of a pack: by default windows as long as the model's, half overlapping."""
    model = pack.exact(device)
    window = model.config.window
    policy = policy or Policy(window, max(1, window // 2))
    if not 1 <= policy.stride <= policy.window <= window:
        raise FormatError(f"policy {policy}: expected 1 <= stride <= window <= {window}, the model's window")
    assert pack.tokenizer is not None  # pack.exact has checked
    return Coder(model, pack.tokenizer, policy.window, policy.stride)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


class ArchiveWriter:
    """Writes an archive to a stream.

    Args:
        stream: open for binary writing; for `append` also readable and seekable.
        pack: the opened pack that provides the probabilities.
        policy: context policy of a new archive.
        device: where the model runs; the bytes do not depend on it.
        append: the stream holds an archive to which documents are added.

    Raises:
        MismatchError: the archive to append to was made with another pack.
        FormatError: it is damaged.

    An archive is complete when `close` has written its footer; leaving a `with` block closes it unless by an error.
    """

    def __init__(
        self, stream: BinaryIO, pack: Pack, policy: Policy | None = None, device: str = "cpu", append: bool = False
    ):
        self._stream = stream
        self._offsets: list[int] = []
        self.metadata: dict[str, Any] = {}
        self.framing_bytes = 0
        if append:
            reader = ArchiveReader(stream, pack, device)
            self.coder, self._offsets, self.metadata = reader.coder, reader.offsets, reader.metadata
            self._position = stream.seek(0, 2)
            return
        self.coder = make_coder(pack, policy, device)
        header = json.dumps(
            {"pack": pack.sha256, "policy": "document", "window": self.coder.window, "stride": self.coder.stride}
        ).encode()
        head = _HEAD.pack(MAGIC, VERSION, len(header)) + header
        self._position = 0
        self._write(head + _U32.pack(zlib.crc32(head)))

    def _write(self, data: bytes, payload: int = 0) -> None:
        self._stream.write(data)
        self._position += len(data)
        self.framing_bytes += len(data) - payload

    def append(
        self, documents: Sequence[bytes], model_only: bool = False, advance: Advance = ignore_progress
    ) -> list[Record]:
        """Code documents and write them; returns what each cost. They are coded together, so give many at a time.

        Args:
            documents: any bytes, empty ones too.
            model_only: never store a document under zstandard instead.
            advance: told bytes of text.
        """
        records = self.coder.encode(documents, model_only, advance)
        for record in records:
            self._offsets.append(self._position)
            head = _varint(4 * len(record.payload) + record.mode) + _U32.pack(record.crc)
            self._write(head + record.payload, len(record.payload))
        return records

    def close(self) -> None:
        """Write the footer."""
        deltas = [offset - last for offset, last in zip(self._offsets, [0, *self._offsets], strict=False)]
        payload = shrink(json.dumps({"offsets": deltas, "metadata": self.metadata}, separators=(",", ":")).encode())
        chunk = _varint(4 * len(payload) + _FOOTER) + payload
        self._write(chunk + _TRAILER.pack(zlib.crc32(payload), len(chunk) + _TRAILER.size, END_MAGIC))
        self._stream.flush()

    def __enter__(self) -> "ArchiveWriter":
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if kind is None:
            self.close()


class ArchiveReader:
    """Reads an archive from a seekable stream.

    Args:
        stream: open for binary reading.
        pack: the pack that the archive was made with.
        device: where the model runs.

    Raises:
        MismatchError: made with another pack.
        FormatError: not an archive, of a later version, truncated or damaged.
    """

    def __init__(self, stream: BinaryIO, pack: Pack, device: str = "cpu"):
        self._stream = stream
        header = _read_header(stream)
        if header["pack"] != pack.sha256:
            raise MismatchError(
                f"archive: made with pack {header['pack'][:16]}…, this is pack {pack.sha256[:16]}…; "
                "pass the pack it was made with"
            )
        self.coder = make_coder(pack, Policy(header["window"], header["stride"]), device)
        self.offsets, self._end, self.metadata = _read_footer(stream, stream.tell())

    def __len__(self) -> int:
        return len(self.offsets)

    def decode(self, documents: Sequence[int] | None = None, advance: Advance = ignore_progress) -> list[bytes]:
        """The documents numbered `documents` (all of them where None), in that order.

        Raises:
            FormatError: a record is damaged, or there is no such document.
            DocumentError: what was decoded is not what was encoded.
        """
        wanted = range(len(self)) if documents is None else documents
        for number in wanted:
            if not 0 <= number < len(self):
                raise FormatError(f"document {number}: the archive holds documents 0 to {len(self) - 1}")
        modelled: dict[int, bytes] = {}
        crcs: dict[int, int] = {}
        found: dict[int, bytes] = {}
        for number in sorted(set(wanted)):
            mode, crcs[number], payload = self._record(number)
            if mode == MODELLED:
                modelled[number] = payload
            else:
                found[number] = _stored(number, payload)
                advance(len(payload))
        for number, document in self.coder.decode(modelled, advance) if modelled else ():
            found[number] = document
            self._check(number, document, crcs[number])
        for number in set(found) - set(modelled):
            self._check(number, found[number], crcs[number])
        return [found[number] for number in wanted]

    def _record(self, number: int) -> tuple[int, int, bytes]:
        offset = self.offsets[number]
        following = self.offsets[number + 1] if number + 1 < len(self) else self._end
        self._stream.seek(offset)
        record = _read_document(self._stream, offset)
        _skip_footers(self._stream, following)
        if self._stream.tell() != following:
            raise FormatError(
                f"document {number}: its chunk does not end where the next begins, at offset {following}; "
                "the archive is damaged"
            )
        return record

    @staticmethod
    def _check(number: int, document: bytes, crc: int) -> None:
        if zlib.crc32(document) != crc:
            raise DocumentError(
                f"CRC-32 of the decoded bytes is {zlib.crc32(document):08x}, the archive says {crc:08x}; "
                "the archive is damaged or the arithmetic of this machine is not IEEE",
                number,
                document,
            )


def encode(model: Pack, documents: Sequence[bytes], device: str = "cpu") -> bytes:
    """Code documents (any bytes) with a pack; returns an archive.

    Raises:
        MismatchError: the pack holds weights only.
    """
    stream = BytesIO()
    with ArchiveWriter(stream, model, device=device) as writer:
        writer.append(documents)
    return stream.getvalue()


def decode(model: Pack, packed: bytes, documents: Sequence[int] | None = None, device: str = "cpu") -> list[bytes]:
    """The documents of an archive, or those numbered `documents`.

    Raises:
        MismatchError: the archive was made with another pack.
        FormatError: it is not an archive, or damaged.
    """
    return ArchiveReader(BytesIO(packed), model, device).decode(documents)


def describe(packed: bytes) -> dict[str, Any]:
    """What an archive says of itself, without its pack. Raises FormatError as `ArchiveReader` does."""
    stream = BytesIO(packed)
    header = _read_header(stream)
    offsets, _, metadata = _read_footer(stream, stream.tell())
    modes = [_read_head(stream, stream.seek(offset))[0] for offset in offsets]
    return {
        "archive_bytes": len(packed),
        "documents": len(offsets),
        "modelled": modes.count(MODELLED),
        "stored": modes.count(STORED),
        **header,
        "metadata": metadata,
    }


def _stored(number: int, payload: bytes) -> bytes:
    try:
        return read_stored(payload)
    except FormatError as error:
        raise FormatError(f"document {number}: {error}") from error


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
        if not (isinstance(header["pack"], str) and header["policy"] == "document"):
            raise ValueError(f"pack or policy missing in {header}")
        if not all(type(header[key]) is int for key in ("window", "stride")):
            raise ValueError(f"window or stride missing in {header}")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise FormatError(f"archive: header is not what underpar writes ({error!r})") from error
    return header


def _read_footer(stream: BinaryIO, first: int) -> tuple[list[int], int, dict[str, Any]]:
    """The offset of every document, that of the footer, and the metadata; chunks begin at offset `first`."""
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
        deltas, metadata = footer["offsets"], footer["metadata"]
        if not all(type(delta) is int and delta > 0 for delta in deltas) or not isinstance(metadata, dict):
            raise ValueError("index out of order")
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
    return offsets, begin, metadata


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
