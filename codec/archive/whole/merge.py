"""Join archives without coding again: the records and files of each in turn, behind one header and before one footer.

Records are copied chunk by chunk, so memory grows with the number of records and files, not with their bytes, and one
input is open at a time. What appends have left between records is left out. The result does not depend on how a merge
is cut into merges, and an archive that nothing was appended to is its own merge, to the byte.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce
from hashlib import sha256
from operator import and_
from os import stat_result
from pathlib import Path
from typing import BinaryIO

from codec.archive import SUFFIX
from codec.archive.format import Contents, Header, Tag, embedded_pack, read_contents, read_record
from codec.archive.members import ROOT, Kind, Member, check_names
from codec.archive.writer import ChunkWriter
from codec.console import Advance, ignore_progress
from codec.entropy.varint import Fields
from codec.errors import CodecError, FormatError, MismatchError, damaged, named_archive
from codec.files import atomic_write, check_output, open_binary


@dataclass(frozen=True)
class Merged:
    """Counts of what a merge has joined."""

    archives: int
    files: int
    documents: int  # records
    text_bytes: int


@dataclass(frozen=True)
class _Input:
    """An archive to join, as it was when it was first read."""

    path: Path
    contents: Contents
    status: stat_result
    has_pack: bool

    def named(self, error: CodecError) -> CodecError:
        """Return an error of this archive, with its path in front."""
        return type(error)(f"{self.path}: {error}")


def merge(
    archives: Sequence[str | Path], target: str | Path, folders: bool = False, advance: Advance = ignore_progress
) -> Merged:
    """Join archives into the archive `target`, which appears whole or not at all.

    Args:
        archives: paths; the files, or else the documents, of the first come first.
        target: the archive to make; one that is there is replaced.
        folders: put the files of each archive below a folder with the archive's name, without `.upz`.
        advance: called with bytes of archives.

    Raises:
        OutputError: `target` is one of the archives, or cannot be written.
        FormatError: an archive is damaged or unfinished, or a file has the name of another.
        MismatchError: the archives are of other packs, of other adaptations or windows, hold documents here and files
            there, or change while they are joined.

    >>> import tempfile
    >>> from pathlib import Path
    >>> import codec
    >>> pack = codec.open(Path("artifacts/models/small.pack").read_bytes())
    >>> with tempfile.TemporaryDirectory() as name:
    ...     paths = [Path(name, "a.upz"), Path(name, "b.upz")]
    ...     for path in paths:
    ...         _ = path.write_bytes(codec.encode(pack, [path.name.encode()]))
    ...     done = codec.merge(paths, Path(name, "c.upz"))
    ...     codec.decode(pack, Path(name, "c.upz").read_bytes())
    [b'a.upz', b'b.upz']
    """
    target = Path(target)
    check_output(target, archives)
    inputs = [_read(Path(path)) for path in archives]
    mode = reduce(and_, [found.status.st_mode | 0o600 for found in inputs], 0o666)
    with atomic_write(target, mode=mode) as out:
        return _write(inputs, out, folders, advance)


def merge_stream(
    archives: Sequence[str | Path], out: BinaryIO, folders: bool = False, advance: Advance = ignore_progress
) -> Merged:
    """Join archives on a stream that need not seek; otherwise as `merge`."""
    return _write([_read(Path(path)) for path in archives], out, folders, advance)


def _read(path: Path) -> _Input:
    with open_binary(path, "archive") as stream:
        status = path.stat()
        if not stream.seekable():
            raise FormatError(f"{path}: a pipe or device, whose index cannot be read first; copy it to a file")
        with named_archive(path):
            contents = read_contents(stream)
            return _Input(path, contents, status, embedded_pack(stream, contents) is not None)


def _write(inputs: Sequence[_Input], out: BinaryIO, folders: bool, advance: Advance) -> Merged:
    """Write the records of all inputs behind one header, and one footer behind them."""
    if not inputs:
        raise CodecError("nothing to merge: pass archives")
    header, members = _common_header(inputs), _all_members(inputs, folders)
    chunks = ChunkWriter(out, header)
    for found in inputs:
        if found.has_pack:
            chunks.add_pack(_pack(found, header))
            break
    for found in inputs:
        _copy(found, chunks, advance)
    chunks.close(members)
    files = sum(member.kind in (Kind.FILE, Kind.JSON_LINES) and not member.more for member in members)
    records = sum(len(found.contents.sizes) for found in inputs)
    return Merged(len(inputs), files, records, sum(int(found.contents.sizes.sum()) for found in inputs))


def _common_header(inputs: Sequence[_Input]) -> Header:
    """Return the header that all inputs with a model share. Raises MismatchError where two differ."""
    with_model = [found for found in inputs if found.contents.header.pack is not None]
    for found in with_model[1:]:
        one, other = with_model[0].contents.header, found.contents.header
        if one == other:
            continue
        what = "packs" if one.pack != other.pack else "adaptations" if one.window == other.window else "windows"
        raise MismatchError(
            f"{with_model[0].path} ({_described(one)}) and {found.path} ({_described(other)}): made with different "
            f"{what}, and an archive has one; merge those that are alike, or encode again"
        )
    return with_model[0].contents.header if with_model else Header()


def _described(header: Header) -> str:
    window = "the model's window" if header.window is None else f"a window of {header.window}"
    return f"pack {(header.pack or b'').hex()}…, adaptation {header.adaptation}, {window}"


def _pack(found: _Input, header: Header) -> bytes:
    """Return the pack that an input holds. Raises FormatError where it is damaged or another than the archive names."""
    with open_binary(found.path, "archive") as stream:
        try:
            blob = embedded_pack(stream, found.contents)
            if blob is None:
                raise _changed(found)
        except FormatError as error:
            raise found.named(error) from error
    name = sha256(blob).digest()
    if header.pack is None or not name.startswith(header.pack):
        raise FormatError(f"{found.path}: holds pack {name[:8].hex()}…, not the one it names; the file is damaged")
    return blob


def _all_members(inputs: Sequence[_Input], folders: bool) -> list[Member]:
    """Return the members of all inputs in turn, a folder that several have once.

    Raises:
        MismatchError: some inputs have files, and others documents without names.
        FormatError: a file has the name of another.
    """
    with_files = [found for found in inputs if found.contents.members]
    without = [found for found in inputs if len(found.contents.sizes) and not found.contents.members]
    if with_files and without:
        raise MismatchError(
            f"{without[0].path} holds documents without names, {with_files[0].path} files; "
            "merge archives of one sort, or encode the documents from a file"
        )
    members: list[Member] = []
    owners: dict[str, tuple[_Input, Kind]] = {}
    for found in with_files:
        below = found.path.name.removesuffix(SUFFIX) if folders else ""
        places: dict[int, int] = {}  # where members of this input have gone
        for n, member in enumerate(found.contents.members):
            name = _below(below, member.name)
            owner, kind = owners.get(name, (found, None))
            if kind is not None and not member.more:
                if member.kind == kind == Kind.FOLDER:
                    continue
                raise FormatError(
                    f"file name {name!r}: it is in {owner.path} and in {found.path}; "
                    + ("rename one of the archives" if folders else "pass --folders, a folder for each archive")
                )
            owners.setdefault(name, (found, member.kind))
            places[n] = len(members)
            back = len(members) - places[n - member.back] if member.back else 0
            members.append(replace(member, name=name, back=back))
    check_names([member for member in members if not member.more])
    return members


def _below(folder: str, name: str) -> str:
    """Return a member's name below a folder, unless that is empty."""
    return name if not folder else folder if name == ROOT else f"{folder}/{name}"


def _copy(found: _Input, chunks: ChunkWriter, advance: Advance) -> None:
    """Copy the records of an input.

    Raises:
        FormatError: a chunk is damaged, or refers to a record before the archive's first.
        MismatchError: the archive has changed.
    """
    with open_binary(found.path, "archive") as stream:
        now = found.path.stat()
        if (now.st_size, now.st_mtime_ns) != (found.status.st_size, found.status.st_mtime_ns):
            raise _changed(found)
        with named_archive(found.path), damaged():
            for number, size in enumerate(found.contents.sizes.tolist()):
                chunk = read_record(stream, found.contents, number)
                if chunk.tag == Tag.SAME:
                    Fields(chunk.payload, f"record {number}").count(number, "records back")
                chunks.copy(chunk, size)
                advance(len(chunk.payload))


def _changed(found: _Input) -> MismatchError:
    return MismatchError(f"{found.path}: changed while it was merged; merge again")
