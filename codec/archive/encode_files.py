"""Code files into an archive in bounded memory, part by part, each part committed to a journal.

A part is up to 64 MiB of a file, or many small files together. A general compressor codes the whole part, the model
codes the part's pieces or the texts of its lines, and the smaller result is kept.

The journal, `TARGET.partial`, has every record that is done. When all records are done, they are written behind a
header, or behind the archive that they are appended to. Then the result takes its name at once: a target is complete or
absent, and an older target stays until then. An interrupted job that is resumed reads the input again, but codes only
what the journal lacks. The archive is the same to the byte.
"""

import json
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache, reduce
from operator import and_
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from codec.archive.format import WITH_MODEL, Contents, Header, read_contents
from codec.archive.journal import Journal
from codec.archive.members import Kind, Member, check_names
from codec.archive.part_coder import PartCoder, kept_records
from codec.archive.reader import check_pack
from codec.archive.sources import PartReader, Source
from codec.archive.writer import ChunkWriter, header_of
from codec.errors import MismatchError, named_archive
from codec.files import atomic_write, open_binary
from codec.pack.reader import Pack
from codec.text.base import DocumentCoder
from codec.text.open_coder import check_policy, default_policy, open_coder
from codec.text.policy import Adaptation

if TYPE_CHECKING:
    from codec.text.solid.coder import SolidCoder

_BLOCK = 1 << 20


@dataclass
class Tally:
    """The progress of a job, in bytes. `resumed` of the `text_bytes` were done before the job began.

    The journal has the records of `kept` bytes. The model took part in `model_bytes` of the text. It coded `tokens`
    tokens of what was not resumed, ends of documents included.
    """

    documents: int = 0
    text_bytes: int = 0
    coded_bytes: int = 0
    resumed: int = 0
    kept: int = 0
    tokens: int = 0
    model_bytes: int = 0
    files: int = 0


Watch = Callable[[Tally, float], None]
"""A function that is called with the progress so far, and with the bytes of text done since the last call."""


@dataclass(frozen=True)
class Settings:
    """The settings by which files become records.

    Args:
        pack: the pack with the model; None codes without a model.
        adaptation: what the model learns from a document on the way.
        device: where the model runs, as of `codec.devices.find_devices`.
        independent: make every line and piece decodable alone, whatever that costs.
        included: the bytes of the pack, for an archive that holds its pack.
        block: bytes of a block of a solid stream, all of which are decoded to reach any byte of the block.
    """

    pack: Pack | None = None
    adaptation: Adaptation = Adaptation.NONE
    device: str = "cpu"
    independent: bool = False
    included: bytes | None = None
    block: int = 1 << 20


def partial(target: Path) -> Path:
    """Return the path of the journal of a job that makes `target`."""
    return target.with_name(f"{target.name}.partial")


def encode_files(
    sources: Sequence[Source],
    target: Path,
    settings: Settings,
    append: bool = False,
    resume: bool = False,
    force: bool = False,
    watch: Watch = lambda tally, amount: None,
) -> Tally:
    """Code files into the archive `target`.

    Args:
        sources: what `codec.archive.sources.find_sources` found.
        target: the archive to make.
        settings: how files become records.
        append: add the files to the archive that is there; one job at a time, by whatever links the archive is reached.
        resume: continue an interrupted job, if its journal is there.
        force: discard the journal of an interrupted job, and begin again.
        watch: called with progress.

    Raises:
        FormatError: an input cannot be read, the archive is damaged, or it has a file of the same name.
        MismatchError: the archive or the journal was made with another pack, or the input is not what it was.
    """
    before = _Before(target, settings) if append else None
    members = list(before.contents.members) if before else []
    check_names([m for m in [*members, *(s.member for s in sources)] if m.name and not m.more])
    target.parent.mkdir(parents=True, exist_ok=True)
    job = {**_model(settings), "behind": before and before.crc}
    journal = Journal(partial(target.resolve()), json.dumps(job).encode(), resume, force)
    try:
        tally = _code(sources, settings, before, members, journal.frames(), journal.add, watch)
        with atomic_write(target, mode=_mode(sources)) as out:
            chunks = _begin(out, settings, before)
            for record in kept_records(journal.frames()):
                chunks.add(record)
            chunks.close(members)
    except BaseException:
        journal.close()
        raise
    journal.remove()
    return tally


def encode_stream(
    sources: Sequence[Source], out: BinaryIO, settings: Settings, watch: Watch = lambda tally, amount: None
) -> Tally:
    """Code files into an archive on a stream that need not seek; errors as of `encode_files`."""
    chunks = _begin(out, settings, None)
    members: list[Member] = []
    waiting: list[bytes] = []

    def commit(frame: bytes) -> None:
        waiting.append(frame)
        if frame[:1] != b"D":
            for record in kept_records(waiting):
                chunks.add(record)
            waiting.clear()

    tally = _code(sources, settings, None, members, (), commit, watch)
    chunks.close(members)
    return tally


def _code(
    sources: Sequence[Source],
    settings: Settings,
    before: "_Before | None",
    members: list[Member],
    done: Iterable[bytes],
    commit: Callable[[bytes], None],
    watch: Watch,
) -> Tally:
    """Code all parts, and add the parts' members to `members`."""
    tally = Tally(files=sum(source.member.kind in (Kind.FILE, Kind.JSON_LINES) for source in sources))
    count = len(before.contents.sizes) if before else 0

    def keep(frame: bytes) -> None:
        commit(frame)
        tally.kept = coder.kept

    coder = PartCoder(
        opener := _opener(settings, before, tally, watch),
        _solid_opener(settings, before, opener),
        settings.device,
        settings.independent,
        settings.block,
        count,
        done,
        keep,
    )
    for part in PartReader(sources, len(members)).parts():

        def advance(amount: float) -> None:
            watch(tally, amount)

        found, records = coder.code(part, advance)
        members += found
        tally.documents += len(records)
        tally.text_bytes += len(part.data)
        tally.model_bytes += sum(record.text_bytes for record in records if record.mode in WITH_MODEL)
        tally.coded_bytes += sum(len(record.payload) for record in records)
        tally.resumed, tally.tokens, tally.kept = coder.resumed, coder.tokens, coder.kept
        watch(tally, 0)
    return tally


def _opener(
    settings: Settings, before: "_Before | None", tally: Tally, watch: Watch
) -> Callable[[], DocumentCoder] | None:
    """Return a function that opens the coder of documents at its first call; None where there is no model."""
    pack = settings.pack
    if pack is None:
        return None
    policy = (before and before.policy) or default_policy(pack, settings.adaptation)
    check_policy(pack, policy)

    @cache
    def opened() -> DocumentCoder:
        coder = open_coder(pack, policy, settings.device)
        coder.start(lambda amount: watch(tally, amount))
        return coder

    return opened


def _solid_opener(
    settings: Settings, before: "_Before | None", opener: Callable[[], DocumentCoder] | None
) -> "Callable[[], SolidCoder]":
    """Return a function that opens the coder of blocks of solid streams at its first call."""

    @cache
    def opened() -> "SolidCoder":
        from codec.text.solid.blocks import open_blocks

        if settings.pack is None or opener is None:
            return open_blocks()
        policy = before.policy if before else default_policy(settings.pack, settings.adaptation)
        return open_blocks(settings.pack, policy, settings.device, opener())

    return opened


def _begin(out: BinaryIO, settings: Settings, before: "_Before | None") -> ChunkWriter:
    """Return a writer of chunks behind a new header, or behind the archive that is appended to."""
    if before:
        before.copy(out)
        chunks = ChunkWriter(out, before.header, before.contents)
        chunks.gap(before.size - before.contents.end)
        return chunks
    pack = settings.pack
    chunks = ChunkWriter(out, header_of(pack, default_policy(pack, settings.adaptation)) if pack else Header())
    if settings.included:
        chunks.add_pack(settings.included)
    return chunks


def _model(settings: Settings) -> dict[str, object]:
    """Return the settings that decide the archive's bytes, as the journal states them."""
    return {
        "pack": settings.pack and settings.pack.sha256,
        "adaptation": settings.adaptation,
        "independent": settings.independent,
        "included": settings.included is not None,
        "block": settings.block,
    }


def _mode(sources: Sequence[Source]) -> int:
    """Return the mode of an archive: nobody may read the archive who may not read all of its files."""
    return reduce(and_, [source.member.mode | 0o600 for source in sources if source.member.mode is not None], 0o666)


class _Before:
    """The archive to append to."""

    def __init__(self, path: Path, settings: Settings):
        self._path = path
        with open_binary(path, "archive") as stream, named_archive(path):
            self.contents: Contents = read_contents(stream)
            self.size, self.crc = _transfer(stream, None)
        if self.contents.sizes.size and not self.contents.members:
            raise MismatchError(f"{path}: it holds documents without names, to which files cannot be added")
        self.header, self.policy = self.contents.header, None
        if settings.pack:
            check_pack(self.contents, settings.pack)
            self.policy = default_policy(settings.pack, settings.adaptation)
            if self.header.pack is None:
                self.header = header_of(settings.pack, self.policy)
            self.policy = self.header.policy(self.policy.window)

    def copy(self, out: BinaryIO) -> None:
        """Copy the archive. Raises MismatchError if the archive has changed."""
        with open_binary(self._path, "archive") as stream:
            if _transfer(stream, out) != (self.size, self.crc):
                raise MismatchError(f"{self._path}: changed while files were coded to append; append again")


def _transfer(stream: BinaryIO, out: BinaryIO | None) -> tuple[int, int]:
    """Copy a whole stream to `out`, unless None; return the stream's size and CRC-32."""
    crc = stream.seek(0)
    while block := stream.read(_BLOCK):
        crc = zlib.crc32(block, crc)
        if out:
            out.write(block)
    return stream.tell(), crc
