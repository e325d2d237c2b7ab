"""Files and folders that appear whole or not at all."""

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from codec.errors import FormatError


@contextmanager
def atomic_write(path: str | Path) -> Iterator[BinaryIO]:
    """Open a temporary file beside `path`; rename it to `path` when the block ends without an error."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        umask = os.umask(0)
        os.umask(umask)
        Path(temporary).chmod(0o666 & ~umask)
        Path(temporary).replace(path)
    except BaseException:
        with suppress(FileNotFoundError):
            Path(temporary).unlink()
        raise


@contextmanager
def new_folder(folder: Path, replaces: str | None = None) -> Iterator[Path]:
    """Make a folder to fill, which becomes `folder` if the block ends without an error and is gone otherwise.

    The folder is filled under another name in the same parent, where nobody else has put a link into it.

    Args:
        folder: a path where nothing is, or an empty folder.
        replaces: a file name; a folder that holds such a file is replaced.

    Raises:
        FormatError: `folder` exists and is neither empty nor to be replaced, or is a link.
    """
    folder = folder.absolute()
    ours = folder.is_dir() and (not any(folder.iterdir()) or (replaces is not None and (folder / replaces).is_file()))
    if folder.is_symlink() or (folder.exists() and not ours):
        expected = f"an empty folder or one with a {replaces}" if replaces else "an empty folder"
        raise FormatError(f"{folder}: it exists, expected {expected}; choose another folder or remove that one")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as name:
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
    """The bytes of `path`. Raises FormatError that names `what` was wanted if it cannot be read."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise FormatError(f"{what} {path}: {error.strerror}; pass the path of an existing, readable file") from error


def open_binary(path: str | Path, what: str) -> BinaryIO:
    """`path` open for reading. Raises FormatError that names `what` was wanted if it cannot be opened."""
    try:
        return Path(path).open("rb")
    except OSError as error:
        raise FormatError(f"{what} {path}: {error.strerror}; pass the path of an existing, readable file") from error
