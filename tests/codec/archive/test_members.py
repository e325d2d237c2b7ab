"""codec.archive.members: what becomes a file of an archive, and the names that are refused both ways."""

import os
from pathlib import Path
from typing import Any

import pytest

from codec.archive.members import (
    Member,
    Reading,
    Source,
    check_names,
    find_sources,
    groups,
    read_metadata,
    total_bytes,
    write_metadata,
)
from codec.errors import FormatError

ELSEWHERE = Path("/nowhere/a.upz")

HOSTILE = ["", "/etc/passwd", "../a", "a/../../b", "a/..", ".", "a//b", "a/", "a\0b", "\ud800", "./a"]


@pytest.fixture
def folder(tmp_path) -> Path:
    root = tmp_path / "in"
    (root / "b" / "c").mkdir(parents=True)
    (root / "empty" / "er").mkdir(parents=True)
    (root / "b" / "c" / "x.jsonl").write_bytes(b"no JSON")
    (root / "b.txt").write_bytes(b"text")
    (root / ".hidden").write_bytes(b"")
    (root / os.fsdecode(b"\xff\n")).write_bytes(b"odd")
    return root


def test_a_folder(folder):
    sources, tree = find_sources([folder], ELSEWHERE)
    assert tree
    assert [(s.name, s.kind) for s in sources] == [
        (".hidden", "file"),
        ("b/c/x.jsonl", "file"),  # plain, so that it comes back to the byte
        ("b.txt", "file"),
        ("empty/er", "folder"),
        ("\udcff\n", "file"),
    ]
    assert total_bytes(sources) == 14
    reading = Reading(sources)
    assert list(reading.documents()) == [b"", b"no JSON", b"text", b"odd"]
    assert [member.documents for member in reading.members] == [1, 1, 1, 0, 1]


def test_files_and_standard_input(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "x"}\n{"text": "y"}\n')
    sources, tree = find_sources([tmp_path / "a.jsonl"], ELSEWHERE)
    assert ([(s.name, s.kind) for s in sources], tree) == ([("a.jsonl", "jsonl")], False)
    sources, tree = find_sources([tmp_path / "a.jsonl", Path("-")], ELSEWHERE)
    assert ([(s.name, s.kind) for s in sources], tree) == ([("a.jsonl", "jsonl"), ("stdin", "file")], True)
    assert total_bytes(sources) is None
    with pytest.raises(FormatError, match="there are two of it"):
        find_sources([tmp_path / "a.jsonl", tmp_path / "a.jsonl"], ELSEWHERE)


def test_links(folder, tmp_path):
    (folder / "inside").symlink_to("b.txt")
    sources, _ = find_sources([folder], ELSEWHERE)
    assert Source("inside", "file", folder / "inside") in sources
    (tmp_path / "secret").write_bytes(b"secret")
    for target in ("../secret", str(tmp_path / "secret"), "b", "..", "missing", "loop"):
        (folder / "loop").unlink(missing_ok=True)
        (folder / "loop").symlink_to(target)
        with pytest.raises(FormatError, match=r"loop: neither a file nor a folder, or a link"):
            find_sources([folder], ELSEWHERE)
    (folder / "loop").unlink()
    os.mkfifo(folder / "pipe")
    with pytest.raises(FormatError, match="pipe: neither"):
        find_sources([folder], ELSEWHERE)


def test_an_archive_in_what_it_archives(folder):
    for target in (folder / "a.upz", folder / "b" / "c" / ".." / "a.upz"):
        with pytest.raises(FormatError, match="pass an output elsewhere"):
            find_sources([folder], target)


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names(name):
    with pytest.raises(FormatError, match="expected a relative path"):
        check_names(["fine", name])


@pytest.mark.parametrize("names", [["a", "a"], ["a", "a/b"], ["a/b", "a"], ["a/b/c", "x", "a/b"]], ids=str)
def test_names_that_clash(names):
    with pytest.raises(FormatError, match="there are two of it"):
        check_names(names)


def test_names_that_do_not_clash():
    check_names(["a", "b/a", "b/b", "..a", "a..", "b/.c", "-", " ", "é\n"])


def test_metadata():
    members = [Member("a", "file", 2), Member("b/c", "jsonl", 0), Member("d", "folder", 0)]
    assert read_metadata(write_metadata(members, True), 2) == (members, True)
    assert read_metadata({"else": 1}, 7) == ([Member("documents", "file", 7)], False)


GOOD = {"tree": True, "files": [["a", "file", 2]]}


@pytest.mark.parametrize(
    "lie",
    [
        {"tree": 1},
        {"tree": False, "files": [["a", "file", 1], ["b", "file", 1]]},
        {"tree": False, "files": []},
        {"files": None},
        {"files": 3},
        {"files": [3]},
        {"files": [["a", "file"]]},
        {"files": [["a", "file", 2, 0]]},
        {"files": [["a", "link", 2]]},
        {"files": [["a", [], 2]]},
        {"files": [[7, "file", 2]]},
        {"files": [["a", "file", 2.0]]},
        {"files": [["a", "file", True], ["b", "file", 1]]},
        {"files": [["a", "file", -1], ["b", "file", 3]]},
        {"files": [["a", "file", 1]]},
        {"files": [["../a", "file", 2]]},
        {"files": [["a", "file", 1], ["a", "file", 1]]},
    ],
    ids=str,
)
def test_metadata_that_lies(lie: dict[str, Any]):
    assert read_metadata(GOOD, 2)
    with pytest.raises(FormatError):
        read_metadata({**GOOD, **lie}, 2)
    with pytest.raises(FormatError):
        read_metadata({"files": GOOD["files"]}, 2)


def test_groups():
    parts = [b"a" * n for n in (3, 0, 4, 5, 20, 1, 1)]
    assert [list(map(len, group)) for group in groups(iter(parts), 6)] == [[3, 0, 4], [5, 20], [1, 1]]
    assert list(groups(iter([]), 6)) == []
