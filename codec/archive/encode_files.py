"""Files into an archive, in bounded memory: groups of documents are coded and committed to a journal, one by one.

The journal, `TARGET.partial`, has the chunks of every group that is done. When all are, they are copied behind a
header, or behind the archive that they are appended to, and the result takes its name at once: a target is whole or not
there, and the one before it stays until then. An interrupted job that goes on reads the input again, but codes only
what the journal lacks; the archive is the same to the byte.
"""

import json
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from codec.archive.format import Contents, documents_of, read_contents, write_chunk, write_footer, write_header
from codec.archive.journal import Journal
from codec.archive.members import Member, Reading, Source, check_names, read_metadata, write_metadata
from codec.archive.reader import check_pack
from codec.devices import group_bytes
from codec.errors import MismatchError
from codec.files import atomic_write, open_binary
from codec.pack.reader import Pack
from codec.text.open_coder import default_policy, open_coder
from codec.text.policy import Adaptation

GROUP_BYTES = {"cpu": 1 << 17, "cuda": 1 << 24}
"""Bytes of text for each device that are coded together and committed: ten batches and more, ten seconds of a slow
processor."""

_BLOCK = 1 << 20


@dataclass
class Tally:
    """What a job has done, in bytes; `resumed` of `text_bytes` were done before it began.

    What is not resumed has `tokens` that the model coded, the ends of documents included, and took `seconds` once the
    model was ready.
    """

    documents: int = 0
    text_bytes: int = 0
    coded_bytes: int = 0
    resumed: int = 0
    longest: int = 0
    tokens: int = 0
    seconds: float = 0.0

    def count(self, documents: Sequence[bytes], coded_bytes: int) -> None:
        """Add documents and the bytes of their chunks."""
        sizes = [len(document) for document in documents]
        self.documents += len(sizes)
        self.text_bytes += sum(sizes)
        self.coded_bytes += coded_bytes
        self.longest = max([self.longest, *sizes])


Watch = Callable[[Tally, float], None]
"""Told what is done, and how many bytes of text since the last call."""


def partial(target: Path) -> Path:
    """The journal of a job that makes `target`."""
    return target.with_name(f"{target.name}.partial")


def encode_files(
    sources: Sequence[Source],
    tree: bool,
    target: Path,
    pack: Pack,
    device: str = "cpu",
    append: bool = False,
    resume: bool = False,
    adaptation: Adaptation = Adaptation.NONE,
    watch: Watch = lambda tally, amount: None,
) -> Tally:
    """Encode files into the archive `target`.

    Args:
        sources, tree: what `codec.archive.members.find_sources` found.
        append: add them to the archive that is there, which makes a tree of it.
        resume: go on with what an interrupted job has left, if anything.
        adaptation: of a new archive; one that is appended to keeps its own.

    Raises:
        FormatError: an input cannot be read, the archive is damaged, or it has a file of the same name.
        MismatchError: the archive or the journal was made with another pack, or the input is not what it was.
    """
    before = _Before(target, pack) if append else None
    policy = before.contents.policy if before else default_policy(pack, adaptation)
    coder = open_coder(pack, policy, device)
    members = before.members if before else []
    check_names([*(member.name for member in members), *(source.name for source in sources)])
    job = {"pack": pack.sha256, **vars(policy), "behind": [before.size, before.crc] if before else None}
    reading, tally = Reading(sources), Tally()
    documents = reading.documents()
    target.parent.mkdir(parents=True, exist_ok=True)
    journal = Journal(partial(target), json.dumps(job).encode(), resume)
    try:
        for frame in journal.frames():
            _skip(frame, documents, tally)
        tally.resumed = tally.text_bytes
        watch(tally, tally.resumed)
        coder.start(lambda amount: watch(tally, amount))
        begin = time.perf_counter()
        limit = group_bytes(GROUP_BYTES, device)
        with closing(coder.encode_groups(documents, limit, advance=lambda n: watch(tally, n))) as coding:
            for group, records in coding:
                chunks = b"".join(write_chunk(record.mode, record.crc, record.payload) for record in records)
                journal.add(chunks)
                tally.count(group, len(chunks))
                tally.tokens += sum(record.tokens for record in records)
                tally.seconds = time.perf_counter() - begin
        metadata = write_metadata([*members, *reading.members], tree or before is not None)
        with atomic_write(target) as out:
            if before:
                before.copy(out)
            else:
                out.write(write_header(pack.sha256, policy))
            offsets = list(before.contents.offsets) if before else []
            for frame in journal.frames():
                offsets += [out.tell() + offset for offset, _ in documents_of(BytesIO(frame), len(frame))]
                out.write(frame)
            longest = max(tally.longest, before.contents.longest if before else 0)
            out.write(write_footer(offsets, longest, metadata))
    finally:
        journal.close()
    journal.path.unlink(missing_ok=True)
    return tally


def _skip(frame: bytes, documents: Iterator[bytes], tally: Tally) -> None:
    """Take the documents whose chunks are in `frame`. Raises MismatchError where they are not the same."""
    taken: list[bytes] = []
    for _, crc in documents_of(BytesIO(frame), len(frame)):
        document = next(documents, None)
        if document is None or zlib.crc32(document) != crc:
            raise MismatchError(
                f"document {tally.documents + len(taken)} is not the one that was coded before; "
                "pass the same input, or leave out --resume to begin again"
            )
        taken.append(document)
    tally.count(taken, len(frame))


class _Before:
    """The archive to append to."""

    def __init__(self, path: Path, pack: Pack):
        self._path = path
        with open_binary(path, "archive") as stream:
            self.contents: Contents = read_contents(stream)
            check_pack(self.contents, pack)
            self.members: list[Member] = read_metadata(self.contents.metadata, len(self.contents.offsets))[0]
            self.size, self.crc = _transfer(stream, None)

    def copy(self, out: BinaryIO) -> None:
        """Raises MismatchError if the archive has changed."""
        with open_binary(self._path, "archive") as stream:
            if _transfer(stream, out) != (self.size, self.crc):
                raise MismatchError(f"{self._path}: changed while documents were coded to append; append again")


def _transfer(stream: BinaryIO, out: BinaryIO | None) -> tuple[int, int]:
    """Copy all of a stream; its size and CRC-32."""
    crc = stream.seek(0)
    while block := stream.read(_BLOCK):
        crc = zlib.crc32(block, crc)
        if out:
            out.write(block)
    return stream.tell(), crc
