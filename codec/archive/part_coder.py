"""Code parts of files: a whole part under a general compressor, or its documents with the model, in fewest bytes.

Every step is committed to the journal as a *frame*: `D` and records as they are coded; then `K` where the records of
the part are kept, or `S` and the records that take their place. A resumed job is given the frames that it committed
before, and continues behind them.
"""

import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import closing
from dataclasses import replace
from hashlib import blake2b
from typing import TYPE_CHECKING

import zstandard

from codec.archive import json_lines
from codec.archive.format import Tag
from codec.archive.members import Kind, Member
from codec.archive.sources import Part
from codec.console import Advance, ignore_progress
from codec.devices import compute_threads, device_here, group_bytes, kind_of, thread_pool
from codec.entropy.varint import Fields, varint
from codec.errors import MismatchError
from codec.text.base import DocumentCoder
from codec.text.documents import Record
from codec.text.stored import store

if TYPE_CHECKING:
    from codec.text.solid.coder import SolidCoder

GROUP_BYTES = {"cpu": 1 << 16, "cuda": 1 << 24}
"""Bytes of text that a device codes together and commits: a second or two of a slow processor."""

_BLOCKS = 256  # of a solid stream that a GPU codes side by side
_BLOCKS_OF_PROCESSOR = 16  # that a processor codes side by side at most: each takes up to 150 MiB
_PIECE = 1 << 13  # bytes of text that the model codes alone: about its window, and enough to fill the decoder's slots
_BINARY_PIECE = 1 << 16  # the same where a zero byte is near, and a general compressor is likely to be better
_RECORD = 8  # bytes of an archive that a record takes beside its payload
_LEAST_SAME = 16  # bytes of a document from which an equal one is looked for
_LOOKED_AT = 1 << 16  # bytes of a part from which the model is tried on some of it first
_EXCERPT, _EXCERPTS = 1 << 12, 4  # bytes of what it is tried on, and how many
_HOPE = 1.25  # what an excerpt, which begins cold, may cost more than its share of the stored part
_REPEATED, _NOISE = 64, 0.97  # what a general compressor shrinks more, or less, is repetition or noise for all
_REPETITION = 32  # what shrinks this far is repetition, not language: no need to ask the model
_NO_TEXT = 4  # as is that of which every 4th byte is no UTF-8


class PartCoder:
    """A coder of parts of files, in turn.

    Args:
        coder: opens the coder of documents when it is first needed; None where there is no model.
        solid: opens the coder of blocks of solid streams when it is first needed.
        device: where the model runs.
        independent: keep records that decode alone, even where other records would be smaller together.
        block: bytes of a block of a solid stream, all of which are decoded to reach any byte of the block.
        records: how many records the archive already has.
        done: frames of the job that is resumed.
        commit: called with every new frame.
    """

    def __init__(
        self,
        coder: Callable[[], DocumentCoder] | None,
        solid: "Callable[[], SolidCoder]",
        device: str,
        independent: bool,
        block: int,
        records: int,
        done: Iterable[bytes],
        commit: Callable[[bytes], None],
    ):
        self._open, self._solid, self._independent, self._commit = coder, solid, independent, commit
        self._limit = group_bytes(GROUP_BYTES, device)
        on_gpu = kind_of(device_here(device)) == "cuda"
        self._side_by_side = _BLOCKS if on_gpu else min(max(2, compute_threads()), _BLOCKS_OF_PROCESSOR)
        self._count, self._block = records, block
        self._done = iter(done)
        self._frame = next(self._done, None)
        self._seen: dict[bytes, int] = {}  # records of documents by hash
        self.resumed = 0  # bytes of text of which frames were given
        self.kept = 0  # bytes of text that a resumed job would not code again
        self.tokens = 0  # that the model coded

    def code(self, part: Part, advance: Advance) -> tuple[list[Member], list[Record]]:
        """Return the members and the records of a part; `advance` is called with bytes of the part.

        Raises:
            MismatchError: the frames of the resumed job are of another part.
        """
        if not part.data:
            return _plain(part.members), []
        texts = self._documents(part)
        whole = self._take(b"S")
        numbers = self._numbers(texts)
        records = [] if whole else self._resume(texts, advance)
        if whole:
            self._check(part.data, whole)
            advance(len(part.data))
            self.resumed += len(part.data)
            self.kept += len(part.data)
        elif self._take(b"K") is None:
            whole = self._code(part, texts, numbers, records, advance)
            self.kept += len(part.data) - sum(record.text_bytes for record in records) if whole else 0
            self._commit(b"S" + write_records(whole) if whole else b"K")
        if whole:
            self._count += len(whole)
            return _plain(part.members), whole
        for text, number in zip(texts, numbers, strict=True):
            if len(text) >= _LEAST_SAME:
                self._seen.setdefault(_key(text), number)
        self._count += len(records)
        lines = len(texts) - 1 if part.lines else 0
        return [replace(member, documents=lines) for member in part.members], records

    def _take(self, kind: bytes) -> list[Record] | None:
        """Return the records of the next frame of the resumed job, if the frame is of this kind."""
        if self._frame is None or self._frame[:1] != kind:
            return None
        frame, self._frame = self._frame, next(self._done, None)
        return read_records(frame)

    def _resume(self, texts: Sequence[bytes], advance: Advance) -> list[Record]:
        """Return the records that the frames of the resumed job have for these texts."""
        records: list[Record] = []
        while (found := self._take(b"D")) is not None:
            for record in found:
                if len(records) == len(texts):
                    raise self._mismatch()
                self._check(texts[len(records)], [record])
                records.append(record)
                advance(record.text_bytes)
                self.resumed += record.text_bytes
                self.kept += record.text_bytes
        return records

    def _check(self, data: bytes, records: Sequence[Record]) -> None:
        at = 0
        for record in records:
            if zlib.crc32(data[at : at + record.text_bytes]) != record.crc:
                raise self._mismatch()
            at += record.text_bytes
        if at != len(data):
            raise self._mismatch()

    def _mismatch(self) -> MismatchError:
        return MismatchError(
            f"record {self._count}: the input is not what was coded before; "
            "pass the same input, or begin again with --force"
        )

    def _numbers(self, texts: Sequence[bytes]) -> list[int]:
        """Return for each text the number of its record, or the number of the first record with an equal text."""
        numbers, here = [], dict[bytes, int]()
        for number, text in enumerate(texts, self._count):
            key = _key(text) if len(text) >= _LEAST_SAME else b""
            numbers.append(self._seen.get(key, here.setdefault(key, number)) if key else number)
        return numbers

    def _documents(self, part: Part) -> list[bytes]:
        """Cut a part into what is coded alone: the texts of lines and their frame, blocks, or pieces."""
        if part.lines:
            texts, frame = json_lines.split(part.data)
            return [*texts, frame]
        if self._independent:
            return split(part.data)
        return [part.data[at : at + self._block] for at in range(0, len(part.data), self._block)]

    def _code(
        self, part: Part, texts: list[bytes], numbers: list[int], records: list[Record], advance: Advance
    ) -> list[Record]:
        """Add the missing records to `records`; return the records to keep in their place, if those are smaller."""
        done = sum(record.text_bytes for record in records)
        if self._independent and self._open is None:
            new = [_stored(text) for text in texts[len(records) :]]
            records += new
            self._keep(new)
            advance(len(part.data) - done)
            return []
        if self._independent:
            self._code_lines(part, texts, numbers, records, None, advance)
            return []
        with thread_pool(1) as pool:
            whole = pool.submit(_stored, part.data)
            if part.lines:
                self._code_lines(part, texts, numbers, records, whole, advance)
            elif records or _may_mix(part.data):
                groups = self._blocks([t for n, t in enumerate(texts) if n >= len(records)], advance)
                self._add(groups, texts, numbers, records, ignore_progress)
            else:
                advance(len(part.data) - done)
            stored = [whole.result()]
        complete = len(records) == len(texts)
        return [] if complete and _cost(records) <= _cost(stored) else stored

    def _code_lines(
        self,
        part: Part,
        texts: list[bytes],
        numbers: list[int],
        records: list[Record],
        whole: "Future[Record] | None",
        advance: Advance,
    ) -> None:
        """Code documents with the model, where the model may pay in place of the part as a `whole`, unless None."""
        done = sum(record.text_bytes for record in records)
        share = (len(part.data) - done) / max(1, sum(map(len, texts)) - done)  # bytes of the part for each of texts
        if self._open is None or not (records or whole is None or self._hopeful(part, texts, whole)):
            advance(len(part.data) - done)
            return
        base = self._count
        todo = [text for n, text in enumerate(texts) if n >= len(records) and numbers[n] == base + n]
        coder = self._open()
        with closing(coder.encode_groups(iter(todo), self._limit, advance=lambda n: advance(share * n))) as coding:
            self._add((found for _, found in coding), texts, numbers, records, lambda n: advance(share * n))

    def _hopeful(self, part: Part, texts: Sequence[bytes], whole: "Future[Record]") -> bool:
        """Return whether coding all texts with the model may pay, by a look at the bytes and a trial on excerpts."""
        quick = len(zstandard.ZstdCompressor(level=3).compress(part.data))
        wrong = part.data.decode("utf-8", "replace").count("\ufffd") - part.data.count("\ufffd".encode())
        if quick * _REPETITION < len(part.data) or wrong * _NO_TEXT > len(part.data):
            return False
        if len(part.data) < _LOOKED_AT or not self._open:
            return True
        steps = [len(texts) * n // _EXCERPTS for n in range(_EXCERPTS)]
        excerpts = [texts[n][:_EXCERPT] for n in steps]
        coded = sum(len(record.payload) for record in self._open().encode(excerpts))
        text = sum(map(len, texts[:-1] if part.lines else texts))
        frame = len(store(texts[-1])) if part.lines else 0
        return coded / max(1, sum(map(len, excerpts))) * text + frame < _HOPE * _cost([whole.result()])

    def _blocks(self, blocks: Sequence[bytes], advance: Advance) -> Iterator[list[Record]]:
        """Code blocks, as many side by side as pay on the device."""
        from codec.text.solid.blocks import encode_blocks  # compiled code, which lines do without

        for at in range(0, len(blocks), self._side_by_side):
            yield encode_blocks(self._solid(), blocks[at : at + self._side_by_side], advance)

    def _add(
        self,
        groups: Iterator[list[Record]],
        texts: Sequence[bytes],
        numbers: Sequence[int],
        records: list[Record],
        advance: Advance,
    ) -> None:
        """Add and commit groups of records; a text that equals an earlier text becomes a reference to its record."""
        base = self._count

        def add(found: Iterator[Record]) -> None:
            at = len(records)
            for n in range(at, len(texts)):
                if numbers[n] != base + n:
                    records.append(_same(texts[n], base + n - numbers[n]))
                    advance(len(texts[n]))
                elif (record := next(found, None)) is None:
                    break
                else:
                    records.append(record)
                    self.tokens += record.tokens
            if len(records) > at:
                self._keep(records[at:])

        for found in groups:
            add(iter(found))
        add(iter(()))

    def _keep(self, records: Sequence[Record]) -> None:
        self.kept += sum(record.text_bytes for record in records)
        self._commit(b"D" + write_records(records))


def split(data: bytes) -> list[bytes]:
    """Cut a file into pieces of _PIECE / 2 to _PIECE bytes, the last one of fewer.

    A piece ends behind the last line end that allows such a length, or behind a space, or between two characters. Where
    the first _PIECE bytes have a zero byte, the piece has _BINARY_PIECE bytes.
    """
    found, begin = [], 0
    while begin < len(data):
        length = _piece(data, begin)
        found.append(data[begin : begin + length])
        begin += length
    return found


def _piece(data: bytes, begin: int) -> int:
    """Return the bytes of the piece that begins at `begin`, perhaps more than there are."""
    half, end = begin + _PIECE // 2, begin + _PIECE
    if data.find(b"\0", begin, end) >= 0:
        return _BINARY_PIECE
    if len(data) <= end:
        return _PIECE
    cut = data.rfind(b"\n", half, end) + 1 or data.rfind(b" ", half, end) + 1
    while not cut and end > half and data[end] & 0xC0 == 0x80:  # within a character
        end -= 1
    return (cut or end) - begin


def _plain(members: Sequence[Member]) -> list[Member]:
    return [replace(m, kind=Kind.FILE, documents=0) if m.kind == Kind.JSON_LINES else m for m in members]


def _key(text: bytes) -> bytes:
    return blake2b(text, digest_size=24).digest()


def _same(text: bytes, back: int) -> Record:
    return Record(Tag.SAME, varint(back), zlib.crc32(text), len(text), len(text), 0, 0.0, 0.0)


def _stored(data: bytes) -> Record:
    return Record(Tag.STORED, store(data), zlib.crc32(data), len(data), len(data), 0, 0.0, 0.0)


def _may_mix(data: bytes) -> bool:
    """Return whether context mixing may need fewer bytes than a general compressor: not for noise or repetition."""
    quick = len(zstandard.ZstdCompressor(level=3).compress(data))
    return len(data) < _LOOKED_AT or len(data) / _REPEATED < quick < _NOISE * len(data)


def _cost(records: Sequence[Record]) -> int:
    return sum(len(record.payload) + _RECORD for record in records)


def write_records(records: Sequence[Record]) -> bytes:
    """Return records as a frame has them."""
    return b"".join(
        varint(record.mode)
        + varint(record.text_bytes)
        + varint(record.crc)
        + varint(len(record.payload))
        + record.payload
        for record in records
    )


def read_records(frame: bytes) -> list[Record]:
    """Return the records of a frame; their costs under the model are not kept, and 0."""
    fields, records = Fields(frame[1:], "journal"), []
    while fields.left:
        mode, size, crc = fields.number(), fields.number(), fields.number()
        records.append(Record(mode, fields.take(fields.number()), crc, size, size, 0, 0.0, 0.0))
    return records


def kept_records(frames: Iterable[bytes]) -> Iterator[Record]:
    """Yield the records of all parts of a job that is done."""
    waiting: list[Record] = []
    for frame in frames:
        if frame[:1] == b"D":
            waiting += read_records(frame)
            continue
        yield from read_records(frame) if frame[:1] == b"S" else waiting
        waiting = []
