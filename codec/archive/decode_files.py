"""Restore the files of an archive in bounded memory: a file, a tree below one new folder, or a stream.

Decoded bytes are checked before they are written. A file or folder takes its name only when it is complete: whatever
has a name is never half restored. A tree is made below a new folder, in which nobody else has put a link. The links of
the tree come last, so that nothing is written through a link.
"""

import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from codec.archive.json_lines import join
from codec.archive.members import ROOT, Entry, Kind, Member, Part
from codec.archive.reader import ArchiveReader
from codec.console import Advance, ignore_progress
from codec.errors import FormatError
from codec.files import atomic_write, is_stream, named, new_folder

_BLOCK = 1 << 20


def decode_files(
    reader: ArchiveReader, output: Path | BinaryIO, special: bool = False, advance: Advance = ignore_progress
) -> int:
    """Restore all files of an archive.

    Args:
        reader: of the archive.
        output: the file or, for a tree, the folder to make; or a stream, which gets all files one after the other.
        special: restore setuid, setgid and sticky bits, too.
        advance: called with bytes of payload.

    Returns:
        the bytes of all files.

    Raises:
        FormatError: the archive is damaged, has file names that lead out of the folder, or the folder is not empty.
        DocumentError: what was decoded is not what was encoded.
    """
    if not reader.entries:
        return _documents(reader, range(len(reader)), output, advance)
    content = _Content(reader, advance)
    if not isinstance(output, Path):
        return sum(_copy(content.file(entry), output) for entry in reader.entries)
    if reader.is_tree:
        with new_folder(output) as new:
            return _write_tree(new, reader.entries, content, special)
    entry = reader.entries[0]
    plain = entry.member.mode
    with atomic_write(output, mode=0o666 if plain is None else plain & 0o777) as out:
        size = _copy(content.file(entry), out)
    if not is_stream(output):
        _restore_time(output, entry.member)
    return size


def decode_documents(
    reader: ArchiveReader, numbers: Sequence[int], output: Path | BinaryIO, advance: Advance = ignore_progress
) -> int:
    """Write some documents of an archive to a file or a stream, one after the other; return their bytes.

    Errors are those of `decode_files`.
    """
    return _documents(reader, numbers, output, advance)


def decode_file(reader: ArchiveReader, name: str, begin: int, end: int | None, output: Path | BinaryIO) -> int:
    """Write bytes `begin` to `end` of one file of an archive; only the records that hold these bytes are decoded."""
    with reader.open(name) as file:
        size = file.seek(0, os.SEEK_END)
        end = size if end is None else end
        if not 0 <= begin <= end <= size:
            raise FormatError(f"bytes {begin}:{end} of {name!r}: expected a range of its {size} bytes")
        file.seek(begin)

        def blocks() -> Iterator[bytes]:
            left = end - begin
            while left and (block := file.read(min(left, _BLOCK))):
                left -= len(block)
                yield block

        return _write(blocks(), output, reader.find(name).member.mode)


def _documents(reader: ArchiveReader, numbers: Sequence[int], output: Path | BinaryIO, advance: Advance) -> int:
    return _write(reader.iterate(numbers, advance), output, None)


def _write(blocks: Iterator[bytes], output: Path | BinaryIO, mode: int | None) -> int:
    if not isinstance(output, Path):
        return _copy(blocks, output)
    with atomic_write(output, mode=0o666 if mode is None else mode & 0o666) as out:
        return _copy(blocks, out)


def _copy(blocks: Iterator[bytes], out: BinaryIO) -> int:
    size = 0
    for block in blocks:
        out.write(block)
        size += len(block)
    return size


class _Content:
    """The bytes of an archive's files, in order; each record is decoded once."""

    def __init__(self, reader: ArchiveReader, advance: Advance):
        self._reader, self._advance = reader, advance
        self._stream = reader.records(range(len(reader.contents.sizes)), advance)
        self._rest = b""
        self._record = 0  # that is next in the stream

    def file(self, entry: Entry) -> Iterator[bytes]:
        """Yield the bytes of a file, in pieces. The records of a copy are decoded once more."""
        if entry.member.back:
            with self._reader.open(entry.member.name) as file:
                while block := file.read(_BLOCK):
                    yield block
            return
        for part in entry.parts:
            if part.member.kind == Kind.JSON_LINES:
                yield from self._lines(part)
            else:
                yield from self._plain(part.member.size)

    def _plain(self, size: int) -> Iterator[bytes]:
        while size:
            data = self._rest or self._next()
            yield data[:size]
            self._rest = data[size:]
            size -= min(size, len(data))

    def _lines(self, part: Part) -> Iterator[bytes]:
        texts = [self._next() for _ in range(part.member.documents)]
        return join(iter(texts), self._next(), part.member.size)

    def _next(self) -> bytes:
        try:
            return next(self._stream)
        except StopIteration:
            raise FormatError("archive: files of more bytes than its records; the file is damaged") from None


def _write_tree(folder: Path, entries: Sequence[Entry], content: _Content, special: bool) -> int:
    """Make all files, then all links, then set modes and times of folders, the deepest folder first."""
    size = 0
    written: dict[tuple[Part, ...], Path] = {}  # what copies are made of
    made = {folder}
    for entry in entries:
        path = _path(folder, entry.member)
        if entry.member.kind == Kind.FOLDER:
            _make_folders(path, made)
        elif entry.member.kind != Kind.LINK:
            _make_folders(path.parent, made)
            with named(entry.member.name), _create(path) as out:
                if entry.member.back and (source := written.get(entry.parts)):
                    with source.open("rb") as file:
                        shutil.copyfileobj(file, out, _BLOCK)
                else:
                    _copy(content.file(entry), out)
            written[entry.parts] = path
            size += entry.size
            _restore_status(path, entry.member, special)
    for entry in entries:
        if entry.member.kind == Kind.LINK:
            path = _path(folder, entry.member)
            _make_folders(path.parent, made)
            try:
                path.symlink_to(entry.member.target)
            except FileExistsError as error:
                raise _taken(path) from error
            _restore_time(path, entry.member)
    for entry in sorted(entries, key=lambda entry: -entry.member.name.count("/") - (entry.member.name != ROOT)):
        if entry.member.kind == Kind.FOLDER:
            _restore_status(_path(folder, entry.member), entry.member, special)
    return size


def _path(folder: Path, member: Member) -> Path:
    return folder if member.name == ROOT else folder / member.name


def _make_folders(path: Path, made: set[Path]) -> None:
    """Make a folder and those above it, unless they are in `made`, which they are added to.

    Raises:
        FormatError: the disk has something of that name: it takes two names for the same.
    """
    if path in made:
        return
    _make_folders(path.parent, made)
    try:
        path.mkdir()
    except FileExistsError as error:
        raise _taken(path) from error
    made.add(path)


def _taken(path: Path) -> FormatError:
    return FormatError(
        f"file name {path.name!r}: this disk takes it for the name of another file; restore to another disk"
    )


def _create(path: Path) -> BinaryIO:
    """Make a new file that nobody else can read yet. Raises FormatError where the disk has a file of that name."""
    try:
        number = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o600)
    except FileExistsError as error:
        raise _taken(path) from error
    return os.fdopen(number, "wb")


def _restore_status(path: Path, member: Member, special: bool) -> None:
    """Set the permissions and time that a file or folder had; the umask takes permissions away."""
    umask = os.umask(0)
    os.umask(umask)
    folder = member.kind == Kind.FOLDER
    mode = (0o777 if folder else 0o666) if member.mode is None else member.mode
    path.chmod(mode & ~umask & (0o7777 if special else 0o777))
    _restore_time(path, member)


def _restore_time(path: Path, member: Member) -> None:
    link = member.kind == Kind.LINK
    if member.mtime is not None and not (link and os.utime not in os.supports_follow_symlinks):
        os.utime(path, ns=(member.mtime, member.mtime), follow_symlinks=not link)
