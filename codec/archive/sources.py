"""Find the files, folders and links to archive, and read them part by part."""

import os
import stat
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from codec.archive.members import ROOT, Kind, Member, check_names
from codec.errors import FormatError
from codec.files import open_binary

STANDARD = "-"
"""The path of standard input and output."""

PART = 1 << 26
"""Bytes of a file that are coded together: 64 MiB, the dictionary of `xz -9`."""

RUN = 1 << 24
"""Bytes of small files that are coded together. Reading one of these files may cost decoding all of them."""

JSON_LINES = (".jsonl", ".ndjson")
"""Endings of the names, in any case, of files whose texts are coded line by line."""


@dataclass(frozen=True)
class Source:
    """A file, folder or link to archive: a member without its size, and the path to read."""

    member: Member
    path: Path
    size: int = 0  # bytes, as far as is known before reading
    identity: tuple[int, int] | None = None  # device and inode of a file that has other names

    def open(self) -> BinaryIO:
        """Open the file, or standard input. Raises FormatError where that fails."""
        if str(self.path) == STANDARD:
            return sys.stdin.buffer
        return open_binary(self.path, "text")


@dataclass(frozen=True)
class Part:
    """Bytes that are coded together, and the members that they make up."""

    data: bytes
    members: list[Member]
    lines: bool = False  # whether they are JSON Lines of one member


def find_sources(
    inputs: Sequence[Path], target: Path | None = None, note: Callable[[str], None] = lambda message: None
) -> list[Source]:
    """Return what to archive for `inputs`: folders first, then files sorted by kind and name, links last.

    `-` is standard input. A folder stands for everything below it. Names below a single folder are relative to the
    folder. The names of several inputs begin with the inputs' own last names, or with their whole paths where last
    names are equal.

    Args:
        inputs: paths.
        target: the archive to write, which must not lie in a folder that is archived.
        note: called with a sentence on each FIFO, socket or device in a folder, which is left out.

    Raises:
        FormatError: an input cannot be read, two names are equal, or `target` is in a folder.
    """
    sources: list[Source] = []
    names = _names(inputs)
    for path, name in zip(inputs, names, strict=True):
        if path.is_dir():
            if target and target.resolve().is_relative_to(path.resolve()):
                raise FormatError(f"{target}: is in {path}, which is to be encoded; pass an output elsewhere")
            sources.append(_source(path, ROOT if len(inputs) == 1 else name, path.stat()))
            sources += _below(path, "" if len(inputs) == 1 else f"{name}/", note)
        elif str(path) == STANDARD:
            sources.append(Source(Member(name), path))
        else:
            try:
                sources.append(_source(path, name, path.stat()))
            except OSError as error:
                raise FormatError(
                    f"text {path}: {error.strerror}; pass the path of an existing, readable file"
                ) from error
    check_names([source.member for source in sources if source.member.name])
    order = {Kind.FOLDER: 0, Kind.JSON_LINES: 1, Kind.FILE: 2, Kind.LINK: 3}
    return sorted(sources, key=lambda source: (order[source.member.kind], *_kind_and_name(source.member.name)))


def _names(inputs: Sequence[Path]) -> list[str]:
    """Return the names of inputs in an archive; the only input has none where it is standard input."""
    if len(inputs) == 1:
        return ["" if str(inputs[0]) == STANDARD else inputs[0].name or ROOT]
    names = [
        "stdin" if str(path) == STANDARD else path.resolve().name if path.name in ("", "..") else path.name
        for path in inputs
    ]
    if len(set(names)) == len(names):
        return names
    parts = [
        [part for part in Path(os.path.normpath(path)).parts if part not in ("..", path.anchor)] for path in inputs
    ]
    return ["/".join(part) if str(path) != STANDARD else "stdin" for path, part in zip(inputs, parts, strict=True)]


def _kind_and_name(name: str) -> tuple[bytes, bytes]:
    return os.fsencode(PurePosixPath(name).suffix.lower()), os.fsencode(name)


def _source(path: Path, name: str, found: os.stat_result) -> Source:
    """Return the source of a file or folder; the mode and time of a FIFO or a device are not kept."""
    mode, mtime = stat.S_IMODE(found.st_mode), found.st_mtime_ns
    if stat.S_ISDIR(found.st_mode):
        return Source(Member(name, Kind.FOLDER, mode=mode, mtime=mtime), path)
    kind = Kind.JSON_LINES if path.suffix.lower() in JSON_LINES else Kind.FILE
    if not stat.S_ISREG(found.st_mode):
        return Source(Member(name, kind), path)
    identity = (found.st_dev, found.st_ino) if found.st_nlink > 1 else None
    return Source(Member(name, kind, mode=mode, mtime=mtime), path, found.st_size, identity)


def _below(folder: Path, prefix: str, note: Callable[[str], None]) -> Iterator[Source]:
    try:
        found = sorted(os.scandir(folder), key=lambda entry: os.fsencode(entry.name))
    except OSError as error:
        raise FormatError(f"folder {folder}: {error.strerror}; pass a folder that can be read") from error
    for entry in found:
        path, name = folder / entry.name, prefix + entry.name
        status = entry.stat(follow_symlinks=False)
        if entry.is_symlink():
            member = Member(name, Kind.LINK, mtime=status.st_mtime_ns, target=os.readlink(path))  # noqa: PTH115 (a Path would be another string)
            yield Source(member, path)
        elif entry.is_dir(follow_symlinks=False):
            yield _source(path, name, status)
            yield from _below(path, f"{name}/", note)
        elif entry.is_file(follow_symlinks=False):
            yield _source(path, name, status)
        else:
            note(f"{path}: a FIFO, socket or device; left out")


def total_bytes(sources: Sequence[Source]) -> int | None:
    """Return the bytes of all files; None where one of them is no regular file."""
    files = [source for source in sources if source.member.kind in (Kind.FILE, Kind.JSON_LINES)]
    if any(source.member.mtime is None for source in files):
        return None
    return sum(source.size for source in files)


class PartReader:
    """A reader of sources in parts of at most PART bytes; small files share a part."""

    def __init__(self, sources: Sequence[Source], members: int = 0):
        self._sources = sources
        self._number = members  # of the next member
        self._data: list[bytes] = []  # small files of the part that is being filled
        self._members: list[Member] = []
        self._same: dict[bytes | tuple[int, int], int] = {}  # numbers of files by inode or hash

    def parts(self) -> Iterator[Part]:
        """Yield the parts, with all members in turn. Raises FormatError where a file cannot be read."""
        for source in self._sources:
            if source.member.kind in (Kind.FOLDER, Kind.LINK):
                self._add(source.member, b"")
            else:
                yield from self._file(source)
        if self._members:
            yield self._run()

    def _file(self, source: Source) -> Iterator[Part]:
        if self._is_copy(source.member, source.identity):
            return
        number, stream = self._number, source.open()
        with nullcontext() if str(source.path) == STANDARD else stream:
            data = _read(stream, PART + 1)
            if 0 < len(data) <= PART and self._is_copy(source.member, blake2b(data, digest_size=32).digest()):
                return
            if len(data) <= RUN and source.member.kind == Kind.FILE and source.member.name:
                if sum(map(len, self._data)) + len(data) > RUN:
                    yield self._run()
                self._add(replace(source.member, size=len(data)), data)
            else:
                if self._members:
                    yield self._run()
                yield from self._large(source.member, data, stream)
        if source.identity:
            self._same[source.identity] = number

    def _large(self, member: Member, data: bytes, stream: BinaryIO) -> Iterator[Part]:
        """Yield the parts of a file that begins with `data` and continues with the bytes of `stream`."""
        lines = member.kind == Kind.JSON_LINES
        while True:
            cut = _cut(data, lines)
            members = [replace(member, size=cut)] if member.name else []
            self._number += len(members)
            yield Part(data[:cut], members, lines)
            data = data[cut:] + _read(stream, PART + 1 - (len(data) - cut))
            if not data:
                return
            member = Member(member.name, member.kind, more=True)

    def _is_copy(self, member: Member, key: bytes | tuple[int, int] | None) -> bool:
        """Return whether a file of the same inode or bytes has been read; if so, add the member as a copy."""
        if key is None or not member.name:
            return False
        number = self._same.get(key)
        if number is not None:
            self._add(replace(member, kind=Kind.FILE, back=self._number - number), b"")
        elif isinstance(key, bytes):
            self._same[key] = self._number
        return number is not None

    def _add(self, member: Member, data: bytes) -> None:
        self._data.append(data)
        self._members.append(member)
        self._number += 1

    def _run(self) -> Part:
        part = Part(b"".join(self._data), self._members)
        self._data, self._members = [], []
        return part


def _read(stream: BinaryIO, count: int) -> bytes:
    """Read `count` bytes, or all that there are: pipes give less at a time."""
    blocks = []
    while count and (block := stream.read(count)):
        blocks.append(block)
        count -= len(block)
    return b"".join(blocks)


def _cut(data: bytes, lines: bool) -> int:
    """Return where to cut `data`, the beginning of a file: the length of its first part."""
    if len(data) <= PART:
        return len(data)
    return (lines and data.rfind(b"\n", 0, PART) + 1) or PART
