"""codec.archive.decode_files: what comes out, where, and what is never left behind."""

from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from codec.archive.decode_files import decode_files
from codec.archive.encode_files import encode_files
from codec.archive.members import find_sources
from codec.archive.reader import ArchiveReader
from codec.archive.writer import ArchiveWriter
from codec.errors import CodecError, FormatError
from tests.codec.archive.test_members import HOSTILE
from tests.support.fuzzing import pack

DOCUMENTS = [b"one ", b"two\n", b"\xff\x00", b""]


def archive(*files: Any, tree: bool = True) -> bytes:
    stream = BytesIO()
    with ArchiveWriter(stream, pack()) as writer:
        writer.append(DOCUMENTS)
        writer.metadata = {"tree": tree, "files": files}
    return stream.getvalue()


def decode(packed: bytes, output: Any, documents: tuple[int, ...] = ()) -> tuple[int, int]:
    return decode_files(ArchiveReader(BytesIO(packed), pack()), output, documents)


def tree(folder: Path) -> dict[str, bytes | None]:
    """Every file and folder below, by relative name."""
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


def test_a_tree_comes_back(tmp_path):
    root = tmp_path / "in"
    (root / "b" / "c").mkdir(parents=True)
    (root / "empty").mkdir()
    (root / "b" / "c" / "x.jsonl").write_bytes(b'{"text": "a", "id": 1}\r\n\nno JSON')
    (root / "b" / "none").write_bytes(b"")
    (root / "é ☃\n").write_bytes(b"word " * 4000)
    target = tmp_path / "a.upz"
    encode_files(*find_sources([root], target), target, pack())
    before = tree(root)
    with target.open("rb") as stream:
        reader = ArchiveReader(stream, pack())
        (tmp_path / "there").mkdir()
        for name in ("out", "new/out", "there"):
            decode_files(reader, tmp_path / name)
            assert tree(tmp_path / name) == before
        with pytest.raises(FormatError, match="expected an empty folder"):
            decode_files(reader, root)
        with pytest.raises(FormatError, match="expected an empty folder"):
            decode_files(reader, target)
    assert tree(root) == before


def test_a_stream_and_single_documents(tmp_path):
    for packed in (archive(["a", "file", 3], ["b/c", "file", 1]), archive(["a", "file", 4], tree=False)):
        out = BytesIO()
        assert decode(packed, out) == (4, 10)
        assert out.getvalue() == b"".join(DOCUMENTS)
        assert decode(packed, tmp_path / "some", (2, 0, 2)) == (3, 8)
        assert (tmp_path / "some").read_bytes() == b"\xff\x00one \xff\x00"
    lines = BytesIO()
    decode(archive(["a", "jsonl", 2], ["b", "file", 2]), lines)
    assert lines.getvalue() == b'{"text": "one "}\n{"text": "two\\n"}\n\xff\x00'


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_write_nothing(tmp_path, name):
    with pytest.raises(FormatError):
        decode(archive(["fine", "file", 3], [name, "file", 1]), tmp_path / "in" / "out")
    assert list(tmp_path.iterdir()) == []


def test_damage_leaves_nothing(tmp_path):
    packed = bytearray(archive(["a", "file", 1], ["b", "file", 3]))
    at = ArchiveReader(BytesIO(bytes(packed)), pack()).offsets[2]
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
    with pytest.raises((FormatError, OSError)):
        decode(archive(["a", "file", 4]), tmp_path / "out")
    assert list((tmp_path / "elsewhere").iterdir()) == []
    assert sorted(p.name for p in tmp_path.iterdir()) == ["elsewhere", "out"]
