"""codec.archive.decode_files: what comes out, where, and what is never left behind."""

import os
import stat
import threading
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from codec.archive.decode_files import decode_documents, decode_file, decode_files
from codec.archive.encode_files import Settings, encode_files
from codec.archive.format import Header
from codec.archive.members import Kind, Member
from codec.archive.reader import ArchiveReader
from codec.archive.sources import find_sources
from codec.archive.writer import ChunkWriter
from codec.errors import CodecError, FormatError, OutputError
from codec.text.open_coder import make_coder
from tests.codec.archive.test_members import HOSTILE
from tests.support.fuzzing import pack

DOCUMENTS = [b"one ", b"two\n", b"\xff\x00", b"!"]


def archive(*members: Member) -> bytes:
    """An archive of DOCUMENTS, nine bytes, and of these members."""
    stream = BytesIO()
    chunks = ChunkWriter(stream, Header(bytes.fromhex(pack().sha256)[:8]))
    for record in make_coder(pack()).encode(DOCUMENTS, model_only=True):
        chunks.add(record)
    chunks.close(members)
    return stream.getvalue()


def decode(packed: bytes, output: Any, **options: bool) -> int:
    return decode_files(ArchiveReader(BytesIO(packed), pack()), output, **options)


def tree(folder: Path) -> dict[str, Any]:
    """Every file, folder and link below, by relative name, with mode and time."""
    found: dict[str, Any] = {}
    for path in [folder, *folder.rglob("*")]:
        status = path.lstat()
        content = str(path.readlink()) if path.is_symlink() else path.read_bytes() if path.is_file() else None
        mode = None if path.is_symlink() else stat.S_IMODE(status.st_mode)
        found[str(path.relative_to(folder))] = content, mode, status.st_mtime_ns
    return found


@pytest.fixture
def root(tmp_path) -> Path:
    root = tmp_path / "in"
    (root / "b" / "c").mkdir(parents=True)
    (root / "empty").mkdir()
    (root / "b" / "c" / "x.jsonl").write_bytes(b'{"text": "a", "id": 1}\r\n\nno JSON')
    (root / "b" / "none").write_bytes(b"")
    (root / "é ☃\n").write_bytes(b"word " * 4000)
    (root / os.fsdecode(b"\xff")).write_bytes(b"word " * 4000)
    (root / "run").write_bytes(b"#!/bin/sh\n")
    (root / "run").chmod(0o755)
    (root / "private").write_bytes(b"secret")
    (root / "private").chmod(0o600)
    (root / "gone").symlink_to("../no where")
    (root / "b" / "up").symlink_to("..")
    (root / "b").chmod(0o700)
    os.utime(root / "run", ns=(1, 1_234_567_890_123_456_789))
    os.utime(root / "private", ns=(1, -5_000_000_001))
    os.utime(root / "b" / "c", ns=(1, 77))
    return root


@pytest.mark.parametrize("independent", [True, False])
def test_a_tree_comes_back_with_modes_times_and_links(tmp_path, root, independent):
    target, before = tmp_path / "a.upz", tree(root)
    encode_files(find_sources([root], target), target, Settings(pack(), independent=independent))
    with ArchiveReader(target, pack()) as reader:
        (tmp_path / "there").mkdir()
        for name in ("out", "new/out", "there"):
            decode_files(reader, tmp_path / name)
            assert tree(tmp_path / name) == before
        for path in (root, target):
            with pytest.raises(OutputError, match="expected an empty folder"):
                decode_files(reader, path)
    assert tree(root) == before


def test_a_stream_and_single_documents(tmp_path):
    for packed in (archive(), archive(Member("a", size=10), Member("b/c", size=1)), archive(Member("a"))):
        out = BytesIO()
        assert decode(packed, out) == 11
        assert out.getvalue() == b"".join(DOCUMENTS)
        reader = ArchiveReader(BytesIO(packed), pack())
        assert decode_documents(reader, (2, 0, 2), tmp_path / "some") == 8
        assert (tmp_path / "some").read_bytes() == b"\xff\x00one \xff\x00"


def test_files_by_name_and_byte_range(tmp_path):
    packed = archive(Member("a", size=5), Member("b/c", size=4), Member("d", back=2), Member("last"))
    whole, reader = b"".join(DOCUMENTS), ArchiveReader(BytesIO(packed), pack())
    files = {"a": whole[:5], "b/c": whole[5:9], "d": whole[:5], "last": whole[9:]}
    assert reader.names() == list(files)
    for name, data in files.items():
        assert reader.open(name).read() == data
        for begin in range(len(data) + 1):
            for end in range(begin, len(data) + 1):
                out = BytesIO()
                assert decode_file(reader, name, begin, end, out) == end - begin
                assert out.getvalue() == data[begin:end]
        with pytest.raises(FormatError, match="expected a range"):
            decode_file(reader, name, 0, len(data) + 1, BytesIO())
    with reader.open("b/c") as file:
        assert (file.seek(-2, 2), file.read(), file.seek(1), file.read(2), file.tell()) == (
            2,
            data[:0] + whole[7:9],
            1,
            whole[6:8],
            3,
        )
    with pytest.raises(FormatError, match="no such file"):
        reader.open("missing")


def test_a_range_needs_no_other_records():
    packed = bytearray(archive(Member("a", size=4), Member("b", size=4), Member("c")))
    contents = ArchiveReader(BytesIO(bytes(packed)), pack()).contents
    for n in (0, 2, 3):
        begin, end = int(contents.offsets[n]), int(contents.offsets[n] + contents.lengths[n])
        packed[begin:end] = b"\xff" * (end - begin)
    assert ArchiveReader(BytesIO(bytes(packed)), pack()).open("b").read() == b"two\n"


def test_several_threads_read_one_archive():
    packed = archive(*(Member(f"f{n}", size=1) for n in range(10)), Member("last"))
    reader, whole, failures = ArchiveReader(BytesIO(packed), pack()), b"".join(DOCUMENTS), []

    def read() -> None:
        for n in range(10):
            if reader.open(f"f{n}").read() != whole[n : n + 1] or reader.decode() != DOCUMENTS:
                failures.append(n)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


@pytest.mark.parametrize("name", [name for name in HOSTILE if name.isprintable()] + ["a\0b"])
def test_hostile_names_write_nothing(tmp_path, name):
    for kind in Kind:
        with pytest.raises(CodecError):
            decode(archive(Member("fine", size=11), Member(name, kind)), tmp_path / "in" / "out")
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_written_through_a_link(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    for target in ("../elsewhere", str(tmp_path / "elsewhere"), "."):
        hostile = archive(Member("link", Kind.LINK, target=target), Member("link/file", size=11))
        with pytest.raises(FormatError, match="there are two of it"):
            decode(hostile, tmp_path / "out")
        twice = archive(Member("link", Kind.LINK, target=target), Member("link", size=11))
        with pytest.raises(FormatError, match="there are two of it"):
            decode(twice, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert list((tmp_path / "elsewhere").iterdir()) == []
    decode(archive(Member("a/link", Kind.LINK, target="../../elsewhere"), Member("a/b", size=11)), tmp_path / "out")
    assert str((tmp_path / "out" / "a" / "link").readlink()) == "../../elsewhere"


def test_special_bits_and_the_umask(tmp_path):
    packed = archive(Member("suid", size=5, mode=0o6755), Member("wide", size=4, mode=0o777), Member("last"))
    before = os.umask(0o027)
    try:
        decode(packed, tmp_path / "out")
        decode(packed, tmp_path / "special", special=True)
    finally:
        os.umask(before)
    assert [stat.S_IMODE((tmp_path / "out" / n).stat().st_mode) for n in ("suid", "wide", "last")] == [
        0o750,
        0o750,
        0o640,
    ]
    assert stat.S_IMODE((tmp_path / "special" / "suid").stat().st_mode) == 0o6750


def test_a_single_file_keeps_mode_and_time(tmp_path):
    packed = archive(Member("a", mode=0o600, mtime=1_000_000_007))
    decode(packed, tmp_path / "out")
    status = (tmp_path / "out").stat()
    assert (stat.S_IMODE(status.st_mode), status.st_mtime_ns) == (0o600, 1_000_000_007)


def test_names_that_the_disk_takes_for_one(tmp_path, monkeypatch):
    def fold(path: Any, *arguments: Any, **options: Any) -> int:
        if Path(path).name == "A":
            raise FileExistsError
        return plain(path, *arguments, **options)

    plain = os.open
    with (
        monkeypatch.context() as patched,
        pytest.raises(FormatError, match="file name 'A': this disk takes it for the name of another"),
    ):
        patched.setattr("codec.archive.decode_files.os.open", fold)
        decode(archive(Member("a", size=5), Member("A")), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_damage_leaves_nothing(tmp_path):
    packed = bytearray(archive(Member("a", size=4), Member("b")))
    at = int(ArchiveReader(BytesIO(bytes(packed)), pack()).contents.offsets[2])
    packed[at + 1] ^= 1  # its CRC-32
    for output in (tmp_path / "out", tmp_path / "there"):
        with pytest.raises(CodecError, match="document 2: "):
            decode(bytes(packed), output)
        assert not output.exists() or list(output.iterdir()) == []
        (tmp_path / "there").mkdir(exist_ok=True)
    assert [p.name for p in tmp_path.iterdir()] == ["there"]


def test_a_link_in_place_of_the_folder(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").symlink_to("elsewhere")
    with pytest.raises((CodecError, OSError)):
        decode(archive(Member("a", size=4), Member("b")), tmp_path / "out")
    assert list((tmp_path / "elsewhere").iterdir()) == []
    assert sorted(p.name for p in tmp_path.iterdir()) == ["elsewhere", "out"]


@pytest.fixture
def folds(monkeypatch):
    """A disk that takes upper case and lower case for the same, as those of Windows and macOS do."""

    def fold(plain: Any, at: int = 0) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            path = Path(arguments[at])
            folded = type(path)(path.parent, path.name.lower()) if "out" in path.parts else path
            folded = type(path)(str(folded).replace("/X/", "/x/"))
            return plain(*arguments[:at], folded, *arguments[at + 1 :], **options)

        return call

    monkeypatch.setattr(Path, "mkdir", fold(Path.mkdir))
    monkeypatch.setattr(Path, "symlink_to", fold(Path.symlink_to))
    monkeypatch.setattr(os, "open", fold(os.open))


@pytest.mark.parametrize(
    "members",
    [
        [Member("x", size=4), Member("X", size=7)],
        [Member("x", Kind.FOLDER), Member("X", Kind.FOLDER), Member("all", size=11)],
        [Member("x", size=4), Member("X/y", size=7)],
        [Member("x/y", size=4), Member("X", size=7)],
        [Member("x", size=11), Member("X", Kind.LINK, target="x")],
        [Member("x/y", size=11), Member("X/z", Kind.LINK, target="y")],
    ],
)
def test_names_that_a_disk_takes_for_one(tmp_path, folds, members):
    """Refused as a whole: nothing is merged, replaced or left behind."""
    (tmp_path / "out").mkdir()
    with pytest.raises(FormatError, match="this disk takes it for the name of another file"):
        decode(archive(*members), tmp_path / "out" / "new")
    assert list((tmp_path / "out").iterdir()) == []
