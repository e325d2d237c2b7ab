"""What an archive says of the files in it: their names, how their documents make them up, and which names are refused.

The metadata in an archive's footer is `{"tree": bool, "files": [[name, kind, documents], ...]}`: the documents belong
to the files in this order. A file of kind "file" is its documents, concatenated; one of kind "jsonl" has a line for
each; a "folder" is an empty one. Where `tree` is false the only file has its name from whoever decodes it.
"""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, get_args

from codec.archive.pieces import pieces, read_lines
from codec.errors import FormatError
from codec.files import open_binary

Kind = Literal["file", "jsonl", "folder"]

STANDARD = "-"
"""The path of standard input and output."""


@dataclass(frozen=True)
class Source:
    """A file to encode."""

    name: str  # in the archive, with "/" between folders
    kind: Kind
    path: Path

    def open(self) -> BinaryIO:
        if str(self.path) == STANDARD:
            return sys.stdin.buffer
        return open_binary(self.path, "text")

    def documents(self) -> Iterator[bytes]:
        """The file's documents. Raises FormatError where it cannot be read or is not what its name says."""
        if self.kind == "folder":
            return
        stream = self.open()
        with nullcontext() if stream is sys.stdin.buffer else stream:
            yield from read_lines(stream, str(self.path)) if self.kind == "jsonl" else pieces(stream)


@dataclass(frozen=True)
class Member:
    """A file in an archive."""

    name: str
    kind: Kind
    documents: int


def find_sources(inputs: Sequence[Path], target: Path) -> tuple[list[Source], bool]:
    """The files that `inputs` stand for, and whether they make a tree.

    An input that ends in `.jsonl` is read by lines, `-` is standard input, and a folder stands for all files below it,
    which are plain files whatever they are called, so that they come back to the byte. Their names are relative to it.

    Raises:
        FormatError: something else than files and folders, a link that leads out of its folder, two equal names, or
            a folder in which the archive `target` is.
    """
    sources: list[Source] = []
    for path in inputs:
        if path.is_dir():
            if target.resolve().is_relative_to(path.resolve()):
                raise FormatError(f"{target}: is in {path}, which is to be encoded; pass an output elsewhere")
            sources += _below(path, path.resolve(), "")
        else:
            name = "stdin" if str(path) == STANDARD else path.name
            sources.append(Source(name, "jsonl" if path.suffix == ".jsonl" else "file", path))
    check_names([source.name for source in sources])
    return sources, len(inputs) != 1 or inputs[0].is_dir()


def _below(folder: Path, root: Path, prefix: str) -> list[Source]:
    found: list[Source] = []
    for entry in sorted(os.scandir(folder), key=lambda entry: os.fsencode(entry.name)):
        path, name = folder / entry.name, prefix + entry.name
        if entry.is_dir(follow_symlinks=False):
            found += _below(path, root, name + "/") or [Source(name, "folder", path)]
        elif path.is_file() and path.resolve().is_relative_to(root):
            found.append(Source(name, "file", path))
        else:
            raise FormatError(
                f"{path}: neither a file nor a folder, or a link that leads to a folder or out of {root}; "
                "remove it, or encode what it leads to"
            )
    return found


def total_bytes(sources: Sequence[Source]) -> int | None:
    """Bytes of all files, None where standard input is one of them."""
    if any(str(source.path) == STANDARD for source in sources):
        return None
    return sum(source.path.stat().st_size for source in sources if source.path.is_file())


def check_names(names: Sequence[str]) -> None:
    """Raises FormatError for names that could leave a folder, that no file can have, or that are the same twice."""
    folders: set[str] = set()
    for name in names:
        parts = name.split("/")
        if {"", ".", ".."} & set(parts) or "\0" in name or not _encodable(name):
            raise FormatError(f"file name {name!r}: expected a relative path without `..`; the archive is hostile")
        folders.update("/".join(parts[:n]) for n in range(1, len(parts)))
    seen: set[str] = set()
    for name in names:
        if name in seen or name in folders:
            raise FormatError(f"file name {name!r}: there are two of it; encode them into archives of their own")
        seen.add(name)


def _encodable(name: str) -> bool:
    try:
        os.fsencode(name)
    except UnicodeEncodeError:
        return False
    return True


def write_metadata(members: Sequence[Member], tree: bool) -> dict[str, Any]:
    """The metadata of an archive of these files."""
    return {"tree": tree, "files": [[member.name, member.kind, member.documents] for member in members]}


def read_metadata(metadata: dict[str, Any], documents: int) -> tuple[list[Member], bool]:
    """The files of an archive of so many documents, and whether they make a tree; the counterpart of `write_metadata`.

    An archive that says nothing of files is one.

    Raises:
        FormatError: names that `check_names` refuses, or not what underpar writes.
    """
    if "files" not in metadata:
        return [Member("documents", "file", documents)], False
    try:
        tree, members = metadata["tree"], [Member(*entry) for entry in metadata["files"]]
        good = all(
            type(m.name) is str and m.kind in get_args(Kind) and type(m.documents) is int and m.documents >= 0
            for m in members
        )
        if not good or type(tree) is not bool or (not tree and len(members) != 1):
            raise ValueError("fields of wrong types")
        total = sum(member.documents for member in members)
        if total != documents:
            raise ValueError(f"files of {total} documents in an archive of {documents}")
    except (ValueError, KeyError, TypeError) as error:
        raise FormatError(f"archive: its list of files is not what underpar writes ({error})") from error
    check_names([member.name for member in members])
    return members, tree


class Reading:
    """All documents of some files, and how many of them each file has had so far."""

    def __init__(self, sources: Sequence[Source]):
        self._sources = sources
        self.members: list[Member] = []

    def documents(self) -> Iterator[bytes]:
        """One after the other; when they end, `members` is complete."""
        for source in self._sources:
            count = 0
            for document in source.documents():
                count += 1
                yield document
            self.members.append(Member(source.name, source.kind, count))


def groups(documents: Iterator[bytes], limit: int) -> Iterator[list[bytes]]:
    """`documents` in lists that end as soon as they have `limit` bytes."""
    group: list[bytes] = []
    size = 0
    for document in documents:
        group.append(document)
        size += len(document)
        if size >= limit:
            yield group
            group, size = [], 0
    if group:
        yield group
