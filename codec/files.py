"""Read files with clear errors; write files and folders that appear whole or not at all."""

import errno
import os
import stat
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from codec.errors import FormatError, OutputError


def check_output(path: str | Path, inputs: Iterable[str | Path] = (), force: bool = True) -> None:
    """Check that a command may write `path`, before it spends time on the content.

    Args:
        path: of the output.
        inputs: what the command reads; none of it may be overwritten.
        force: replace what is there, also where a link leads.

    Raises:
        OutputError: the output is a folder, an input, or there and not to be replaced, or cannot be written.
    """
    path = Path(path)
    if not path.name:
        raise OutputError(f"output {str(path)!r}: expected the name of a file; pass one")
    if path.is_dir():
        raise OutputError(f"output {path}: it is a folder; pass the name of a file in it, such as {path / 'NAME'}")
    for other in inputs:
        if _same_file(path, Path(other)):
            raise OutputError(f"output {path}: it is the input {other}, too; pass another name")
    if is_stream(path):
        return
    if path.is_symlink() and not force:
        raise OutputError(f"output {path}: it is a link; replace what it leads to with --force, or pass another name")
    if path.exists():
        if not force:
            raise OutputError(f"output {path}: it is there already; replace it with --force, or pass another name")
        if not path.stat().st_mode & 0o222:
            raise OutputError(f"output {path}: it may not be written; change its mode, or pass another name")


def _same_file(path: Path, other: Path) -> bool:
    try:
        return not is_stream(path) and path.samefile(other)
    except OSError:
        return path.resolve() == other.resolve()


def is_stream(path: Path) -> bool:
    """Return whether a path leads to a device, FIFO or socket, perhaps through a link, as `/dev/stdout` does."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


@contextmanager
def atomic_write(path: str | Path, mode: int = 0o666) -> Iterator[BinaryIO]:
    """Open a temporary file beside `path`; rename it to `path` when the block ends without an error.

    A device, FIFO or socket is written in place. Where `path` is a link, what it leads to is replaced. What is replaced
    hands on its permissions.

    Args:
        path: of the file to write.
        mode: permission bits of a new file, from which the umask takes some.

    Raises:
        OutputError: a folder is there.
        OSError: the disk is full or the folder cannot be written; the error names `path`.
    """
    path = Path(path)
    check_output(path)
    if is_stream(path):
        with named(path), path.open("wb", buffering=0 if path.is_char_device() else -1) as stream:
            yield stream
        return
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    umask = os.umask(0)
    os.umask(umask)
    mode = stat.S_IMODE(path.stat().st_mode) & 0o777 if path.exists() else mode & ~umask
    with named(path):
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".upz.")
    try:
        with named(path), os.fdopen(handle, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        Path(temporary).chmod(mode)
        Path(temporary).replace(path)
    except BaseException:
        with suppress(FileNotFoundError):
            Path(temporary).unlink()
        raise


@contextmanager
def named(path: str | Path) -> Iterator[None]:
    """Name `path` in errors that come from writing to an open file, as of a full disk."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO):
            error.filename = str(path)
        raise


@contextmanager
def new_folder(folder: Path, replaces: str | None = None) -> Iterator[Path]:
    """Make a folder to fill: it becomes `folder` if the block ends without an error, and is removed otherwise.

    The block fills a new folder of another name in the same parent, so that no link in an existing folder is followed.

    Args:
        folder: a path that does not exist, or an empty folder.
        replaces: a file name; an existing folder that holds such a file is replaced.

    Raises:
        OutputError: `folder` is a link, or exists and is neither empty nor to be replaced.
    """
    folder = folder.absolute()
    ours = folder.is_dir() and (not any(folder.iterdir()) or (replaces is not None and (folder / replaces).is_file()))
    if folder.is_symlink() or (folder.exists() and not ours):
        expected = f"an empty folder or one with a {replaces}" if replaces else "an empty folder"
        raise OutputError(f"{folder}: it exists, expected {expected}; choose another folder or remove that one")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".upz.", dir=folder.parent) as name:
        new, old = Path(name) / "new", Path(name) / "old"
        new.mkdir()
        yield new
        if folder.exists():
            folder.rename(old)
        new.rename(folder)


def write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write files into a folder by name, each whole or not at all."""
    for name, content in files.items():
        with atomic_write(folder / name) as file:
            file.write(content)


def read_bytes(path: str | Path, what: str) -> bytes:
    """Read a file.

    Args:
        path: the file.
        what: what the file should be, for the error message.

    Raises:
        FormatError: the file cannot be read.
    """
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise FormatError(f"{what} {path}: {error.strerror}; pass the path of an existing, readable file") from error


def open_binary(path: str | Path, what: str) -> BinaryIO:
    """Open a file for reading.

    Args:
        path: the file.
        what: what the file should be, for the error message.

    Raises:
        FormatError: the file cannot be opened.
    """
    try:
        return Path(path).open("rb")
    except OSError as error:
        raise FormatError(f"{what} {path}: {error.strerror}; pass the path of an existing, readable file") from error
