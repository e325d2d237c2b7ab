"""codec.archive.members: what an archive says of its files comes back; names and sums that do not fit are refused."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from codec.archive.members import (
    ROOT,
    Kind,
    Member,
    check_names,
    entries,
    fits_windows,
    is_tree,
    read_members,
    write_members,
)
from codec.entropy.varint import Fields
from codec.errors import FormatError

HOSTILE = ["", "/etc/passwd", "../a", "a/../../b", "a/..", "a//b", "a/", "a\0b", "\ud800", "./a"]

MEMBERS = [
    Member(ROOT, Kind.FOLDER, mode=0o700, mtime=-1),
    Member("d", Kind.FOLDER),
    Member("l.jsonl", Kind.JSON_LINES, 100, 0o600, 1 << 60, documents=2),
    Member("l.jsonl", Kind.FILE, 4, more=True),
    Member("d/empty", size=0, mode=0o644),
    Member("d/\udcff\n", size=3, mode=0o4755, mtime=0),
    Member("d/copy", back=4, size=104),
    Member("é ☃", Kind.LINK, target="../no/where\udcfe"),
    Member("last", size=7, mode=0o755),
]
SIZES = np.array([0, 2, 9, 6, 8])


def read(data: bytes, count: int, sizes=SIZES) -> list[Member]:
    return read_members(Fields(data, "test"), count, sizes)


def test_members_come_back():
    assert read(write_members(MEMBERS), len(MEMBERS)) == MEMBERS
    assert is_tree(MEMBERS)
    assert not is_tree(MEMBERS[4:5])
    assert is_tree(MEMBERS[:1])


def test_members_know_where_they_are():
    found = {entry.member.name: entry for entry in entries(MEMBERS, SIZES)}
    lines = found["l.jsonl"]
    assert (lines.size, [(part.begin, part.record) for part in lines.parts]) == (104, [(0, 0), (11, 3)])
    assert found["d/copy"].parts == lines.parts
    assert found["d/copy"].size == 104
    assert [(part.begin, part.member.size) for part in found["d/\udcff\n"].parts] == [(15, 3)]
    assert [(part.begin, part.member.size) for part in found["last"].parts] == [(18, 7)]


@given(st.binary(max_size=200), st.integers(0, 6))
def test_any_bytes_are_members_or_refused(data, count):
    try:
        found = read(data, count)
    except FormatError:
        return
    assert len(found) == count
    assert sum(len(entry.parts) for entry in entries(found, SIZES)) >= 0


@pytest.mark.parametrize(
    "members",
    [
        [Member("a", size=26), Member("b")],
        [Member("a", size=1), Member("b", Kind.FOLDER)],
        [Member("l", Kind.JSON_LINES, 1, documents=5)],
        [Member("a", size=1), Member("l", Kind.JSON_LINES, 1, documents=1), Member("b")],
        [Member("a", more=True, size=25)],
        [Member("f", Kind.FOLDER), Member("f", more=True, size=25)],
        [Member("a", size=1), Member("c", back=2)],
        [Member("f", Kind.FOLDER), Member("c", back=1), Member("r", size=25)],
        [Member("a", size=1), Member("c", back=1), Member("d", back=1), Member("r", size=24)],
        [Member("a", size=25), Member("b", mode=0o17777, size=0), Member("c")],
    ],
    ids=range(10),
)
def test_members_that_lie(members):
    with pytest.raises(FormatError):
        read(write_members(members), len(members))


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names(name):
    with pytest.raises(FormatError, match="expected a relative path"):
        check_names([Member("fine"), Member(name)])


@pytest.mark.parametrize("names", [["a", "a"], ["a", "a/b"], ["a/b", "a"], ["a/b/c", "x", "a/b"]], ids=str)
def test_names_that_clash(names):
    with pytest.raises(FormatError, match="there are two of it"):
        check_names(map(Member, names))


def test_names_that_do_not_clash():
    check_names(map(Member, ["a", "b/a", "b/b", "..a", "a..", "b/.c", "-", " ", "é\n", "A", "con", "a\\b"]))


@pytest.mark.parametrize("name", ["a\\b", "C:x", "a:b", "what?", "a|b"])
def test_names_that_windows_reads_otherwise(name, monkeypatch):
    monkeypatch.setattr("os.name", "nt")
    with pytest.raises(FormatError, match="backslash"):
        check_names([Member(name)])


NOT_ON_WINDOWS = [
    "c:x",
    "a\\b",
    "..\\x",
    "nul",
    "NUL.txt",
    "a/com1",
    "lpt9.x.y",
    "con ",
    "a.",
    "a /b",
    "a\tb",
    "a?",
    "<",
    "a|",
]


@pytest.mark.parametrize("name", NOT_ON_WINDOWS)
def test_names_that_windows_takes_for_something_else(name):
    assert not fits_windows(name)


@pytest.mark.parametrize("name", ["a", "a/b.c", "console", "com", "com10", ".a", "é ☃", "nul_", "a.nul"])
def test_names_that_windows_takes_for_themselves(name):
    assert fits_windows(name)
