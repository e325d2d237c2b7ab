"""Describe the files in an archive: names, kinds, sizes, modes and times, and how the records make up the files.

Members partition the records in order. A file has the next `size` original bytes, from whatever records they are in.
A file of JSON Lines has the next `documents` whole records, which are the texts of its lines, and one more record, which
is all of the file but the texts (`codec.archive.json_lines`). Folders and links have no records.
"""

import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from codec.archive.varint import Fields, varint
from codec.errors import FormatError

_MTIME = struct.Struct("<q")
_MODES = (None, 0o644, 0o755)
"""Modes that need no byte of their own; the next code says that a varint with the mode follows."""
_OTHER_MODE = len(_MODES)
_TIMED, _REST = 16, 32  # flags of a member: it has a time; a file takes all that is left


class Kind(IntEnum):
    """What a member is."""

    FILE = 0
    JSON_LINES = 1
    FOLDER = 2
    LINK = 3


@dataclass(frozen=True)
class Member:
    """A file, folder or link in an archive."""

    name: str  # with "/" between folders; bytes that are no UTF-8 as surrogates (`os.fsdecode`)
    kind: Kind = Kind.FILE
    size: int = 0  # bytes of the file, for JSON Lines of its texts and frame
    mode: int | None = None  # permission bits
    mtime: int | None = None  # nanoseconds since 1970
    documents: int = 0  # texts of JSON Lines
    target: str = ""  # of a link


def write_members(members: Sequence[Member]) -> bytes:
    """Write what an archive says of its members, without their number."""
    parts = []
    for n, member in enumerate(members):
        mode = _MODES.index(member.mode) if member.mode in _MODES else _OTHER_MODE
        rest = member.kind == Kind.FILE and n == len(members) - 1
        flags = member.kind | mode << 2 | (_TIMED if member.mtime is not None else 0) | (_REST if rest else 0)
        name = os.fsencode(member.name)
        parts += [bytes([flags]), varint(len(name)), name]
        if mode == _OTHER_MODE:
            parts.append(varint(member.mode or 0))
        if member.mtime is not None:
            parts.append(_MTIME.pack(member.mtime))
        if member.kind == Kind.FILE and not rest:
            parts.append(varint(member.size))
        if member.kind == Kind.JSON_LINES:
            parts.append(varint(member.documents))
        if member.kind == Kind.LINK:
            target = os.fsencode(member.target)
            parts += [varint(len(target)), target]
    return b"".join(parts)


def read_members(fields: Fields, count: int, sizes: NDArray[np.int64]) -> list[Member]:
    """Read `count` members of records with so many original bytes each.

    Raises:
        FormatError: what follows is no list of members, the members do not fit the records, or a name is refused by
            `check_names`.
    """
    ends = np.concatenate(([0], np.cumsum(sizes)))
    total, at, record = int(ends[-1]), 0, 0
    members = []
    for n in range(count):
        flags = fields.take(1)[0]
        kind, mode_code = Kind(flags & 3), flags >> 2 & 3
        name = os.fsdecode(fields.take(fields.number()))
        mode = fields.count(0o7777, "as a mode") if mode_code == _OTHER_MODE else _MODES[mode_code]
        mtime = _MTIME.unpack(fields.take(_MTIME.size))[0] if flags & _TIMED else None
        size = documents = 0
        target = ""
        if flags & ~63 or (flags & _REST and (kind != Kind.FILE or n != count - 1)):
            raise FormatError(f"archive: member {name!r} has flags {flags:#x}; the file is damaged")
        if kind == Kind.FILE:
            size = total - at if flags & _REST else fields.count(total - at, f"bytes of {name!r}")
        elif kind == Kind.JSON_LINES:
            record = int(np.searchsorted(ends, at))
            documents = fields.count(len(sizes) - record - 1, f"documents of {name!r}")
            if ends[record] != at:
                raise FormatError(f"archive: member {name!r} does not begin with a record; the file is damaged")
            size = int(ends[record + documents + 1]) - at
        elif kind == Kind.LINK:
            target = os.fsdecode(fields.take(fields.number()))
        at += size
        members.append(Member(name, kind, size, mode, mtime, documents, target))
    if members and at != total:
        raise FormatError(f"archive: files of {at} bytes in records of {total}; the file is damaged")
    check_names(members)
    return members


def check_names(members: Sequence[Member]) -> None:
    """Check that the names of members can stand beside each other below one folder.

    Raises:
        FormatError: a name is absolute, has `..`, can be no file's on some system, is there twice, or is below a name
            that is no folder.
    """
    folders: set[str] = set()
    for member in members:
        parts = member.name.split("/")
        if {"", ".", ".."} & set(parts) or "\0" in member.name or not _portable(member.name):
            raise FormatError(
                f"file name {member.name!r}: expected a relative path without `..`, drive or backslash; "
                "the archive is hostile"
            )
        folders.update("/".join(parts[:n]) for n in range(1, len(parts)))
    seen: set[str] = set()
    for member in members:
        if member.name in seen or (member.name in folders and member.kind != Kind.FOLDER):
            raise FormatError(f"file name {member.name!r}: there are two of it; encode them into archives of their own")
        seen.add(member.name)


def _portable(name: str) -> bool:
    """Whether a name is a relative path here: on Windows a backslash separates folders and a colon names a drive."""
    if os.name == "nt" and set('\\:*?"<>|') & set(name):
        return False
    try:
        os.fsencode(name)
    except UnicodeEncodeError:
        return False
    return True
