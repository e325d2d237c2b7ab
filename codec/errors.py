"""The errors that codec raises: each says what was found, what was expected, where, and what to do."""

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class CodecError(ValueError):
    """Bad input of any kind; the command line exits with status 2."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the error as it is: a constructor that makes the message from arguments is not called again."""
        return _without_constructor, (type(self), *self.args), self.__dict__


def _without_constructor(kind: type[CodecError], *args: object) -> CodecError:
    return kind.__new__(kind, *args)


class FormatError(CodecError):
    """A file or value that is not what its format says: truncated, corrupted, of a future version, not finite."""


class DamagedError(FormatError):
    """An archive that is not what was written: truncated, or with other bytes."""


@contextmanager
def damaged() -> Iterator[None]:
    """Let FormatError of the block be DamagedError: what the block reads follows from something that was whole."""
    try:
        yield
    except FormatError as error:
        raise DamagedError(str(error)) from error


class OutputError(CodecError):
    """An output that must not be written: an input, a folder, or what is there already and was not to be replaced."""


class UnsupportedError(Exception):
    """A model that a fast backend does not compute, and why; the reference does
    (`codec.backends.select.make_backend`).
    """


class BudgetError(CodecError):
    """No allowed setting meets the byte budget.

    Attributes:
        smallest: the smallest size in bytes that was reached.
    """

    def __init__(self, message: str, smallest: int):
        super().__init__(message)
        self.smallest = smallest


class WorkerError(CodecError):
    """A process that codes documents has died, or failed for another reason than its input."""


class MismatchError(CodecError):
    """Two things that do not belong together: an archive and another pack, a state dict and another config."""


class DocumentError(MismatchError):
    """A document of an archive does not decode to what was encoded.

    Attributes:
        document: its number.
        decoded: the bytes that it decoded to as far as it went.
    """

    def __init__(self, message: str, document: int, decoded: bytes):
        super().__init__(f"document {document}: {message}")
        self.document, self.decoded = document, decoded


@contextmanager
def named_archive(path: Path) -> Iterator[None]:
    """Name the file of an archive in errors about it, and say what to do where the archive is damaged."""
    name = "standard input" if str(path) == "-" else str(path)
    try:
        yield
    except (DamagedError, DocumentError) as error:
        why = str(error).removeprefix("archive: ")
        raise DamagedError(
            f"{name}: the archive is damaged; fetch it again, or restore what is whole: "
            f"underpar salvage {shlex.quote(str(path))} -o FOLDER ({why})"
        ) from error
    except (FormatError, MismatchError) as error:
        raise type(error)(f"{name}: {str(error).removeprefix('archive: ')}") from error
