"""Describe the files in an archive: names, kinds, sizes, modes and times, and how the records make up the files.

Members take the original bytes of the records in turn. A file has the next `size` bytes, whichever records hold them. A
file of JSON Lines has the next `documents` whole records, the texts of its lines, and one more record, the rest of
these lines (`codec.archive.json_lines`). Folders, links and copies have no bytes. A member that continues the file
before it has no name: a large file is several members, and some members of JSON Lines may be plain.
"""

import os
import struct
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from codec.entropy.varint import Fields, varint
from codec.errors import FormatError

ROOT = "."
"""The name of the folder itself, in the archive of a single folder."""

_DEVICES = {"CON", "PRN", "AUX", "NUL", *(f"{port}{n}" for port in ("COM", "LPT") for n in "123456789¹²³")}
"""Names that are devices on Windows in every folder, whatever follows a dot."""

_MTIME = struct.Struct("<q")
_MODES = (None, 0o644, 0o755)
"""Modes that need no byte of their own; the next code says that a varint with the mode follows."""
_OTHER_MODE = len(_MODES)
_MOST_BYTES = 1 << 60  # of a file; its records bound the bytes that it has


class MemberFlag(IntEnum):
    """The flags of a member, beside its kind and its mode."""

    TIMED = 16  # has a time
    REST = 32  # takes all bytes that are left
    COPY = 64  # has the bytes of an earlier file
    MORE = 128  # goes on with the file before


_TIMED, _REST, _COPY, _MORE = MemberFlag


class Kind(IntEnum):
    """The kinds of members."""

    FILE = 0
    JSON_LINES = 1
    FOLDER = 2
    LINK = 3


@dataclass(frozen=True)
class Member:
    """A file, a part of a file, a folder or a link in an archive."""

    name: str  # with "/" between folders; bytes that are no UTF-8 as surrogates (`os.fsdecode`)
    kind: Kind = Kind.FILE
    size: int = 0  # bytes when restored
    mode: int | None = None  # permission bits
    mtime: int | None = None  # nanoseconds since 1970
    documents: int = 0  # records with texts of JSON Lines
    target: str = ""  # of a link
    back: int = 0  # the file has the bytes of the one that begins so many members before, unless 0
    more: bool = False  # goes on with the file before


def write_members(members: Sequence[Member]) -> bytes:
    """Return the members' part of an index, without the number of members."""
    parts = []
    for n, member in enumerate(members):
        mode = _MODES.index(member.mode) if member.mode in _MODES else _OTHER_MODE
        rest = member.kind == Kind.FILE and n == len(members) - 1 and not member.back
        flags = member.kind | mode << 2 | (_TIMED if member.mtime is not None else 0) | (_REST if rest else 0)
        flags |= (_COPY if member.back else 0) | (_MORE if member.more else 0)
        parts.append(bytes([flags]))
        if not member.more:
            parts.append(_write_name(member.name))
        if mode == _OTHER_MODE:
            parts.append(varint(member.mode or 0))
        if member.mtime is not None:
            parts.append(_MTIME.pack(member.mtime))
        if member.back:
            parts.append(varint(member.back))
        elif member.kind in (Kind.FILE, Kind.JSON_LINES) and not rest:
            parts.append(varint(member.size))
        if member.kind == Kind.JSON_LINES:
            parts.append(varint(member.documents))
        if member.kind == Kind.LINK:
            parts.append(_write_name(member.target))
    return b"".join(parts)


def _write_name(name: str) -> bytes:
    data = os.fsencode(name)
    return varint(len(data)) + data


def read_members(fields: Fields, count: int, sizes: NDArray[np.int64]) -> list[Member]:
    """Read `count` members, given the original bytes of each record.

    Raises:
        FormatError: the bytes are no list of members, the members do not fit the records, or a name is refused by
            `check_names`.
    """
    cursor = _Cursor(sizes)
    members: list[Member] = []
    first: int | None = None  # number of the member that a following one may go on with
    totals: dict[int, int] = {}  # bytes of files by the numbers of their first members
    for n in range(count):
        flags = fields.take(1)[0]
        kind, rest, copy, more = Kind(flags & 3), flags & _REST, flags & _COPY, flags & _MORE
        if ((rest or copy) and kind != Kind.FILE) or (rest and (copy or n != count - 1)) or (more and first is None):
            raise FormatError(f"archive: member {n} has flags {flags:#x}; the file is damaged")
        name = members[first].name if more and first is not None else os.fsdecode(fields.take(fields.number()))
        mode = fields.count(0o7777, "as a mode") if flags >> 2 & 3 == _OTHER_MODE else _MODES[flags >> 2 & 3]
        mtime = _MTIME.unpack(fields.take(_MTIME.size))[0] if flags & _TIMED else None
        size = documents = back = 0
        target = ""
        if copy:
            back = fields.count(n, "members back")
            if n - back not in totals or more:
                raise FormatError(f"archive: member {name!r} is a copy of what is no file; the file is damaged")
            size = totals[n - back]
        elif kind in (Kind.FILE, Kind.JSON_LINES):
            size = cursor.left if rest else fields.count(_MOST_BYTES, f"bytes of {name!r}")
        if kind == Kind.JSON_LINES:
            documents = fields.count(len(sizes), f"documents of {name!r}")
        if kind == Kind.LINK:
            target = os.fsdecode(fields.take(fields.number()))
        member = Member(name, kind, size, mode, mtime, documents, target, back, bool(more))
        cursor.take(member)
        members.append(member)
        if not more:
            first = None if copy or kind in (Kind.FOLDER, Kind.LINK) else n
        if first is not None:
            totals[first] = totals.get(first, 0) + size
    if members and cursor.left:
        raise FormatError(f"archive: files that leave {cursor.left} bytes of its records; the file is damaged")
    check_names([member for member in members if not member.more])
    return members


class _Cursor:
    """The place in the records where the next member begins."""

    def __init__(self, sizes: NDArray[np.int64]):
        self._ends: list[int] = [0, *np.cumsum(sizes, dtype=np.int64).tolist()]
        self.at = self.record = 0  # original bytes and whole records that have been taken

    @property
    def left(self) -> int:
        """Return the original bytes that no member has taken."""
        return self._ends[-1] - self.at

    def take(self, member: Member) -> None:
        """Move past a member. Raises FormatError where the records lack the bytes of the member."""
        if member.kind == Kind.JSON_LINES:
            end = self.record + member.documents + 1
            if end >= len(self._ends) or self._ends[self.record] != self.at:
                raise FormatError(f"archive: member {member.name!r} does not have whole records; the file is damaged")
            self.record, self.at = end, self._ends[end]
        elif member.kind == Kind.FILE and not member.back:
            if member.size > self.left:
                raise FormatError(
                    f"archive: member {member.name!r} has {member.size} bytes, its records {self.left}; "
                    "the file is damaged"
                )
            self.at += member.size
            self.record = bisect_left(self._ends, self.at, self.record)


@dataclass(frozen=True)
class Part:
    """A member of a file, and its place in the records."""

    member: Member
    begin: int  # offset in the original bytes of all records
    record: int  # the first of JSON Lines


@dataclass(frozen=True)
class Entry:
    """A file, folder or link with all its parts; a copy has the parts of the file that it copies."""

    member: Member  # the first, which has name, mode and time
    size: int
    parts: tuple[Part, ...]


def entries(members: Sequence[Member], sizes: NDArray[np.int64]) -> list[Entry]:
    """Group members, checked by `read_members`, into files, folders and links."""
    cursor, groups = _Cursor(sizes), []
    copied: dict[int, list[Part]] = {}
    for n, member in enumerate(members):
        if member.back:
            groups.append((member, copied[n - member.back]))
        elif not member.more:
            copied[n] = []
            groups.append((member, copied[n]))
        if member.kind in (Kind.FILE, Kind.JSON_LINES) and not member.back:
            groups[-1][1].append(Part(member, cursor.at, cursor.record))
        cursor.take(member)
    return [Entry(member, sum(part.member.size for part in parts), tuple(parts)) for member, parts in groups]


def is_tree(members: Sequence[Member]) -> bool:
    """Return whether an archive is restored to a folder, unlike an archive of a single file."""
    return len([m for m in members if not m.more]) != 1 or members[0].kind in (Kind.FOLDER, Kind.LINK)


def check_names(members: Iterable[Member]) -> None:
    """Check that members can stand beside each other below one folder.

    Raises:
        FormatError: a name is absolute, has `..`, is no file's name on some system, occurs twice, or lies below a name
            that is no folder's.
    """
    paths: list[tuple[str, bool]] = []  # with a zero for each "/": what is below a name follows it in their order
    for member in members:
        parts = member.name.split("/")
        if member.name == ROOT and member.kind == Kind.FOLDER:
            continue
        if {"", ".", ".."} & set(parts) or "\0" in member.name or not _portable(member.name):
            raise FormatError(
                f"file name {member.name!r}: expected a relative path without `..`, drive or backslash; "
                "the archive is hostile"
            )
        paths.append(("\0".join(parts), member.kind == Kind.FOLDER))
    paths.sort()
    for (one, folder), (other, _) in pairwise(paths):
        if one == other or (not folder and other.startswith(one + "\0")):
            name = one.replace("\0", "/")
            raise FormatError(f"file name {name!r}: there are two of it; encode them into archives of their own")


def fits_windows(name: str) -> bool:
    """Return whether Windows takes a relative path for the same path: no drive, device, other separator or dropped dot.

    >>> [fits_windows(name) for name in ("a/b.txt", "c:x", "..\\\\x", "aux.txt", "a./b", "console")]
    [True, False, False, False, False, True]
    """
    parts = name.split("/")
    odd = any(ord(c) < 32 or c in '\\:*?"<>|' for c in name)
    devices = any(part.split(".")[0].rstrip(" ").upper() in _DEVICES for part in parts)
    return not odd and not devices and not any(part.endswith((" ", ".")) for part in parts)


def _portable(name: str) -> bool:
    """Return whether a name is a relative path here."""
    if os.name == "nt" and not fits_windows(name):
        return False
    try:
        os.fsencode(name)
    except UnicodeEncodeError:
        return False
    return True
