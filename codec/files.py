"""Files that appear whole or not at all."""

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
