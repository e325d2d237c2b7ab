"""Archives (`.upz`): documents coded with a pack, one after the other, each decodable without the others.

`codec.archive.format` has their layout. Writing and reading take documents in groups, so that memory is bounded by a
group and an index of all documents, whatever the archive's size.
"""

import zlib
from collections.abc import Iterator, Sequence
from io import BytesIO
from typing import Any, BinaryIO

import torch

from codec.archive.format import (
    Contents,
    Policy,
    following_offset,
    read_contents,
    read_mode,
    read_record,
    write_chunk,
    write_footer,
    write_header,
)
from codec.console import Advance, ignore_progress
from codec.devices import find_devices, group_bytes, kind_of, processors, visible_gpus
from codec.errors import CodecError, DocumentError, FormatError, MismatchError
from codec.pack.reader import Pack
from codec.text.coder import Coder, DocumentCoder
from codec.text.documents import MODELLED, STORED, Record, read_stored
from codec.text.policy import Adaptation

GROUP_BYTES = {"cpu": 1 << 20, "cuda": 1 << 24}
"""Bytes of documents, as they are in an archive, that a device decodes together: many for each of a coder's lanes."""

_MOST_THREADS = 6
"""That prepare text for a GPU: more keep the one that launches kernels from the interpreter. Beside an H100, 5, 6 and 7
encoded 472,000, 488,000 and 461,000 tokens/s; beside an H200, 24 of 64 processors 428,000, 6 of 16 502,000."""


def default_policy(pack: Pack, adaptation: Adaptation = Adaptation.NONE) -> Policy:
    """The model's window. Raises MismatchError for a pack that holds weights only."""
    return Policy(pack.for_text()[0].window, adaptation)


def open_coder(pack: Pack, policy: Policy | None = None, device: str = "cpu") -> DocumentCoder:
    """Who codes with a pack on all devices of a name, by default with `default_policy`.

    A processor, or a GPU that is the only one, is used from here; any others have a process each.

    Args:
        device: as of `codec.devices.find_devices`.

    Raises:
        MismatchError: the pack holds weights only, or no tables for the recall that the policy asks for.
        FormatError: a window that the model does not have.
        CodecError: no such device.
    """
    policy, devices = policy or default_policy(pack), find_devices(device)
    if devices == ["cpu"] or (len(devices) == 1 and len(visible_gpus()) == 1):
        return make_coder(pack, policy, kind_of(devices[0]))
    from codec.text.workers import Workers  # which a decoder on one device does without

    _check_policy(pack, policy)
    return Workers(pack, policy, devices)


def make_coder(pack: Pack, policy: Policy | None = None, device: str = "cpu", threads: int | None = None) -> Coder:
    """The coder of a pack in this process; errors as of `open_coder`.

    Args:
        device: cpu, or cuda for torch's current GPU.
        threads: of the model and of what prepares text on a processor, by default as many as torch has. Beside a GPU,
            by default one for each processor, of which three of eight prepare text, but not more than _MOST_THREADS.
    """
    if device not in ("cpu", "cuda"):
        raise CodecError(f"device {device!r}: expected cpu or cuda, of which CUDA_VISIBLE_DEVICES chooses one")
    policy = policy or default_policy(pack)
    _check_policy(pack, policy)
    recall = pack.recall if policy.adaptation == Adaptation.RECALL else None
    threads = threads or (torch.get_num_threads() if device == "cpu" else processors())
    if device == "cuda":
        threads = max(1, min(threads * 3 // 8, _MOST_THREADS))
    return Coder(pack.exact(device), pack.for_text()[1], policy.window, recall, threads)


def _check_policy(pack: Pack, policy: Policy) -> None:
    config, tokenizer = pack.for_text()
    if not 1 <= policy.window <= config.window:
        raise FormatError(f"window of {policy.window} tokens: expected 1 to {config.window}, the model's window")
    try:
        len(tokenizer.token_bytes)
    except UnicodeDecodeError as error:
        raise FormatError(f"pack: a piece of its tokenizer is not UTF-8 ({error}); fetch the pack again") from error
    if policy.adaptation == Adaptation.RECALL and not pack.recall:
        raise MismatchError("pack: it has no tables of recall; learn them from text with: underpar recall")


def check_pack(contents: Contents, pack: Pack) -> None:
    """Raises MismatchError for an archive that was made with another pack."""
    if contents.header["pack"] != pack.sha256:
        raise MismatchError(
            f"archive: made with pack {contents.header['pack'][:16]}…, this is pack {pack.sha256[:16]}…; "
            "pass the pack it was made with"
        )


class ArchiveWriter:
    """Writes an archive to a stream.

    Args:
        stream: open for binary writing; for `append` also readable and seekable.
        pack: the opened pack that provides the probabilities.
        policy: context policy of a new archive.
        device: where the model runs, as of `codec.devices.find_devices`; the bytes do not depend on it.
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
        self._longest = 0
        self.metadata: dict[str, Any] = {}
        self.framing_bytes = 0
        if append:
            reader = ArchiveReader(stream, pack, device)
            self.coder, self._offsets, self.metadata = reader.coder, reader.offsets, reader.metadata
            self._longest = reader.longest
            self._position = stream.seek(0, 2)
            return
        policy = policy or default_policy(pack)
        self.coder = open_coder(pack, policy, device)
        self._position = 0
        self._write(write_header(pack.sha256, policy))

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
            self._longest = max(self._longest, record.text_bytes)
            self._write(write_chunk(record.mode, record.crc, record.payload), len(record.payload))
        return records

    def close(self) -> None:
        """Write the footer."""
        self._write(write_footer(self._offsets, self._longest, self.metadata))
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
        device: where the model runs, as of `codec.devices.find_devices`.

    Raises:
        MismatchError: made with another pack.
        FormatError: not an archive, of a later version, truncated or damaged.
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


def encode(
    model: Pack, documents: Sequence[bytes], device: str = "cpu", adaptation: Adaptation = Adaptation.NONE
) -> bytes:
    """Code documents (any bytes) with a pack; returns an archive.

    Raises:
        MismatchError: the pack holds weights only, or not what the adaptation needs.
    """
    stream = BytesIO()
    with ArchiveWriter(stream, model, default_policy(model, adaptation), device) as writer:
        writer.append(documents)
    return stream.getvalue()


def decode(model: Pack, packed: bytes, documents: Sequence[int] | None = None, device: str = "cpu") -> list[bytes]:
    """The documents of an archive, or those numbered `documents`.

    Raises:
        MismatchError: the archive was made with another pack.
        FormatError: it is not an archive, or damaged.
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
