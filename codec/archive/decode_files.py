"""An archive back into files, in bounded memory: a file, a tree below one new folder, or a stream.

What is decoded is checked before it is written, and takes its name only when all of it is there: a file or folder that
exists is never half of one.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import BinaryIO

from codec.archive.members import Member, read_metadata
from codec.archive.pieces import write_line
from codec.archive.reader import ArchiveReader
from codec.console import Advance, ignore_progress
from codec.files import atomic_write, new_folder


def decode_files(
    reader: ArchiveReader,
    output: Path | BinaryIO,
    documents: Sequence[int] = (),
    advance: Advance = ignore_progress,
) -> tuple[int, int]:
    """Decode an archive, or some of its documents.

    Args:
        output: the file or, for a tree, the folder to make; or a stream, which gets all files one after the other.
        documents: write nothing but these, as they are.
        advance: told bytes of payload.

    Returns:
        How many documents, and bytes of text.

    Raises:
        FormatError: the archive is damaged, has file names that lead out of the folder, or the folder is not empty.
        DocumentError: what was decoded is not what was encoded.
    """
    members, tree = read_metadata(reader.metadata, len(reader))
    counted = _Counted(reader.iterate(documents or None, advance))
    kept = [Member("documents", "file", len(documents))] if documents else members
    if not isinstance(output, Path):
        for member in kept:
            _write(output, member, counted)
    elif tree and not documents:
        _write_tree(output, members, counted)
    else:
        with atomic_write(output) as out:
            _write(out, kept[0], counted)
    return counted.documents, counted.text_bytes


class _Counted:
    """Documents, and how many have been taken."""

    def __init__(self, documents: Iterable[bytes]):
        self._documents = iter(documents)
        self.documents, self.text_bytes = 0, 0

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        document = next(self._documents)
        self.documents += 1
        self.text_bytes += len(document)
        return document


def _write(out: BinaryIO, member: Member, documents: Iterator[bytes]) -> None:
    for document in islice(documents, member.documents):
        out.write(write_line(document) if member.kind == "jsonl" else document)


def _write_tree(folder: Path, members: Sequence[Member], documents: Iterator[bytes]) -> None:
    with new_folder(folder) as new:
        for member in members:
            path = new / member.name
            (path if member.kind == "folder" else path.parent).mkdir(parents=True, exist_ok=True)
            if member.kind != "folder":
                with path.open("xb") as out:
                    _write(out, member, documents)
