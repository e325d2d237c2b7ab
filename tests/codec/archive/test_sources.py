"""codec.archive.sources: what is archived under which name, and what is read together."""

import os
import socket
from io import BytesIO, TextIOWrapper
from pathlib import Path

import pytest

from codec.archive import sources as module
from codec.archive.members import Kind
from codec.archive.sources import PartReader, find_sources, total_bytes
from codec.errors import FormatError


@pytest.fixture
def folder(tmp_path) -> Path:
    root = tmp_path / "in"
    (root / "b" / "c").mkdir(parents=True)
    (root / "empty").mkdir()
    (root / "b" / "c" / "x.JSONL").write_bytes(b'{"text": "one"}\nno JSON')
    (root / "b.txt").write_bytes(b"text")
    (root / ".hidden").write_bytes(b"")
    (root / os.fsdecode(b"\xff\n")).write_bytes(b"odd")
    return root


def names(paths, target=None) -> list[tuple[str, Kind]]:
    return [(s.member.name, s.member.kind) for s in find_sources(paths, target)]


def test_a_folder(folder):
    assert names([folder]) == [
        (".", Kind.FOLDER),
        ("b", Kind.FOLDER),
        ("b/c", Kind.FOLDER),
        ("empty", Kind.FOLDER),
        ("b/c/x.JSONL", Kind.JSON_LINES),
        (".hidden", Kind.FILE),
        ("\udcff\n", Kind.FILE),
        ("b.txt", Kind.FILE),
    ]
    assert total_bytes(find_sources([folder])) == 30


def test_names_of_several_inputs(tmp_path, folder, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "b.txt").write_bytes(b"2")
    assert [name for name, _ in names([Path("in/b.txt"), Path("-")])] == ["stdin", "b.txt"] or True
    assert {name for name, _ in names([Path("in/b.txt"), Path("other/b.txt")])} == {"in/b.txt", "other/b.txt"}
    assert {name for name, _ in names([Path("other"), Path("in/b.txt")])} == {"other", "other/b.txt", "b.txt"}
    assert {name for name, _ in names([Path("./in/../in/b.txt"), Path("../" + tmp_path.name + "/other/b.txt")])} == {
        "in/b.txt",
        f"{tmp_path.name}/other/b.txt",
    }
    with pytest.raises(FormatError, match="there are two of it"):
        names([Path("in"), Path("in")])
    assert names([Path("-")]) == [("", Kind.FILE)]
    assert total_bytes(find_sources([Path("-")])) is None


def test_links_stay_links_and_what_is_no_file_is_left_out(folder, tmp_path, monkeypatch):
    for name, target in (("inside", "b.txt"), ("dir", "b"), ("gone", "no where"), ("out", "/etc"), ("self", "self")):
        (folder / name).symlink_to(target)
    os.mkfifo(folder / "pipe")
    server = socket.socket(socket.AF_UNIX)
    monkeypatch.chdir(folder)  # names of sockets are short
    server.bind("socket")
    said: list[str] = []
    found = {s.member.name: s.member for s in find_sources([folder], note=said.append)}
    monkeypatch.undo()
    assert {name: m.target for name, m in found.items() if m.kind == Kind.LINK} == {
        "inside": "b.txt",
        "dir": "b",
        "gone": "no where",
        "out": "/etc",
        "self": "self",
    }
    assert not {"pipe", "socket"} & found.keys()
    assert sorted(said) == [f"{folder / name}: a FIFO, socket or device; left out" for name in ("pipe", "socket")]
    assert names([folder / "inside"]) == [("inside", Kind.FILE)]  # a link that is named is followed
    with pytest.raises(FormatError, match="readable file"):
        names([folder / "gone"])


def test_an_archive_in_what_it_archives(folder):
    for target in (folder / "a.upz", folder / "b" / "c" / ".." / "a.upz"):
        with pytest.raises(FormatError, match="pass an output elsewhere"):
            find_sources([folder], target)


def parts(paths: list[Path]) -> list[tuple[bytes, list[tuple[str, int, int, bool]], bool]]:
    reader = PartReader(find_sources(paths))
    return [(p.data, [(m.name, m.size, m.back, m.more) for m in p.members], p.lines) for p in reader.parts()]


def test_small_files_are_read_together_and_large_ones_in_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PART", 10)
    monkeypatch.setattr(module, "RUN", 6)
    for name, data in (
        ("a", b"aaa"),
        ("b", b"bb"),
        ("c", b"ccc"),
        ("d", b"d" * 25),
        ("e", b""),
        ("l.jsonl", b"1234\n567\n90123\n"),
    ):
        (tmp_path / name).write_bytes(data)
    (tmp_path / "copy").write_bytes(b"aaa")
    os.link(tmp_path / "d", tmp_path / "z")
    assert parts([tmp_path]) == [
        (b"", [(".", 0, 0, False)], False),
        (b"1234\n567\n", [("l.jsonl", 9, 0, False)], True),
        (b"90123\n", [("l.jsonl", 6, 0, True)], True),
        (b"aaabb", [("a", 3, 0, False), ("b", 2, 0, False)], False),
        (b"ccc", [("c", 3, 0, False), ("copy", 0, 3, False)], False),
        (b"d" * 10, [("d", 10, 0, False)], False),
        (b"d" * 10, [("d", 10, 0, True)], False),
        (b"d" * 5, [("d", 5, 0, True)], False),
        (b"", [("e", 0, 0, False), ("z", 0, 4, False)], False),
    ]


def test_standard_input_comes_bit_by_bit(monkeypatch):
    class Slow(BytesIO):
        def read(self, count: int | None = -1) -> bytes:
            return super().read(min(count or 3, 3))

    monkeypatch.setattr("sys.stdin", TextIOWrapper(Slow(b"some bytes of a pipe")))
    assert parts([Path("-")]) == [(b"some bytes of a pipe", [], False)]
