"""The list of SHA-256 sums that says what is in a folder."""

import hashlib
from pathlib import Path

from codec.errors import FormatError, MismatchError
from codec.files import read_bytes

SUMS = "SHA256SUMS"
"""The file of `write_sums`, in the form that `sha256sum -c` reads."""


def sums_of(folder: Path) -> dict[str, str]:
    """Return the hex SHA-256 of every file of a folder by its path in the folder, except SUMS."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name != SUMS:
            with path.open("rb") as stream:
                found[name] = hashlib.file_digest(stream, "sha256").hexdigest()
    return found


def write_sums(folder: Path) -> None:
    """Write SUMS of all files in `folder`."""
    lines = [f"{digest}  {name}\n" for name, digest in sums_of(folder).items()]
    (folder / SUMS).write_text("".join(lines))


def read_sums(folder: Path) -> dict[str, str]:
    """Return the content of SUMS: hex SHA-256 by path.

    Raises:
        FormatError: SUMS is not a file of `write_sums`.
    """
    found: dict[str, str] = {}
    text = read_bytes(folder / SUMS, "list of sums").decode("utf-8", "replace")
    for line in text.removesuffix("\n").split("\n"):
        digest, _, name = line.partition("  ")
        parts = name.split("/")
        if len(digest) != 64 or set(digest) - set("0123456789abcdef") or {"", ".", ".."} & set(parts) or "\\" in name:
            raise FormatError(f"{folder / SUMS}: {line[:80]!r} is not a SHA-256, two spaces and a path in the folder")
        found[name] = digest
    return found


def check_sums(folder: Path) -> None:
    """Check the files of a folder against SUMS.

    Raises:
        MismatchError: a file is missing, additional or different.
    """
    stated, found = read_sums(folder), sums_of(folder)
    for name in sorted(set(stated) | set(found)):
        if stated.get(name) != found.get(name):
            raise MismatchError(
                f"{folder / name}: SHA-256 {found.get(name, 'none: it is missing')}, {SUMS} says "
                f"{stated.get(name, 'nothing of it')}; fetch the folder again"
            )
