"""codec.archive.whole.merge: archives are joined chunk by chunk; what does not fit together is refused by its name."""

import os
import tracemalloc
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from zlib import crc32

import numpy as np
import pytest

import codec
from codec.archive.encode_files import Settings, encode_files, encode_stream, partial
from codec.archive.format import Contents, Header, Index, Tag, read_contents, write_footer
from codec.archive.journal import Journal
from codec.archive.members import Kind, Member
from codec.archive.reader import ArchiveReader
from codec.archive.sources import find_sources
from codec.archive.whole.description import describe
from codec.archive.whole.merge import Merged, merge, merge_stream
from codec.archive.writer import ChunkWriter
from codec.entropy.varint import varint
from codec.errors import CodecError, FormatError, MismatchError, OutputError
from codec.text.documents import STORED, Record
from codec.text.policy import Adaptation
from tests.codec.cli.test_commands import Call
from tests.support.by_heart import BLOB, PACK, by_heart, pack_of

pytestmark = pytest.mark.usefixtures("by_heart")
__all__ = ["by_heart"]

SETTINGS = Settings(PACK)
ALONE = Settings(PACK, independent=True)
STORED_ONLY = Settings(None)


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def lines(seed: int, count: int = 12) -> bytes:
    texts = (b"words %d of %d " % (n % 9, seed) * 5 for n in range(count))
    return b"".join(b'{"n%d": %d, "text": "%s"}\n' % (seed, n, text) for n, text in enumerate(texts))


def encoded(name: str, files: dict[str, bytes], settings: Settings = SETTINGS, **options: bool) -> Path:
    """NAME.upz of files, which lie in a folder of the same name; one file is archived alone."""
    for file, data in files.items():
        path = Path(name, file)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    only = [Path(name, file) for file in files]
    encode_files(find_sources(only if len(files) == 1 else [Path(name)]), Path(f"{name}.upz"), settings, **options)
    return Path(f"{name}.upz")


def documents(name: str, texts: list[bytes], header: Header | None = None) -> Path:
    """NAME.upz of stored documents without files; `header` where a model is named."""
    stream = BytesIO()
    chunks = ChunkWriter(stream, header or Header())
    if header:
        chunks.add_pack(BLOB)
    for text in texts:
        chunks.add(record(text))
    chunks.close([])
    Path(name).write_bytes(stream.getvalue())
    return Path(name)


def record(text: bytes) -> Record:
    return Record(STORED, text and b"\0" + text, crc32(text), len(text), len(text), 0, 0.0, 0.0)


def contents(path: Path) -> dict[str, bytes]:
    with ArchiveReader(path, PACK) as reader:
        return {name: reader.open(name).read() for name in reader.names()}


@pytest.mark.parametrize("settings", [SETTINGS, ALONE, STORED_ONLY], ids=["solid", "independent", "stored"])
def test_files_come_back_as_from_one_archive(folder, settings):
    """Merging equals coding both together: JSON Lines, whose texts repeat, and files each in a part of its own."""
    paths = [encoded(n, {f"{n}.jsonl": lines(i)}, settings) for i, n in enumerate("ab")]
    done = merge(paths, "c.upz")
    assert contents(Path("c.upz")) == {f"{n}.jsonl": lines(i) for i, n in enumerate("ab")}
    assert done == Merged(2, 2, len(ArchiveReader("c.upz").contents.sizes), 2 * len(lines(0)))
    encode_files(find_sources([Path("a/a.jsonl"), Path("b/b.jsonl")]), Path("both.upz"), settings)
    assert Path("c.upz").read_bytes() == Path("both.upz").read_bytes()


def test_one_alone_is_itself_and_merging_is_associative(folder):
    mixed = [
        encoded("a", {"x/1": b"one " * 90, "x/2": b"one " * 90, "y.jsonl": lines(1)}),
        encoded("b", {"z.jsonl": lines(2)}, ALONE),
        encoded("c", {"w": b"w" * 999, "x/3": b"three"}, STORED_ONLY),
    ]
    merge(mixed[:1], "one.upz")
    assert Path("one.upz").read_bytes() == mixed[0].read_bytes()
    merge(mixed, "all.upz")
    merge(mixed[:2], "ab.upz")
    merge(["ab.upz", mixed[2]], "again.upz")
    merge(mixed[1:], "bc.upz")
    merge([mixed[0], "bc.upz"], "third.upz")
    assert Path("all.upz").read_bytes() == Path("again.upz").read_bytes() == Path("third.upz").read_bytes()
    assert contents(Path("all.upz")) == {k: v for path in mixed for k, v in contents(path).items()}
    out = BytesIO()
    merge_stream(mixed, out)
    assert out.getvalue() == Path("all.upz").read_bytes()


def test_copies_folders_links_and_status_come_back(folder):
    """A folder that both have stands once, and copies find what they copy over the folders that are left out."""
    for name in "ab":
        Path(name, "sub").mkdir(parents=True)
        Path(name, "sub", f"{name}1").write_bytes(b"the same in both files of a folder" * 9)
        Path(name, "sub", f"{name}2").write_bytes(b"the same in both files of a folder" * 9)
        Path(name, f"link-{name}").symlink_to(f"sub/{name}1")
        Path(name, "sub", f"{name}1").chmod(0o640)
        encode_files(find_sources([Path(name)]), Path(f"{name}.upz"), SETTINGS)
    merge(["a.upz", "b.upz"], "c.upz")
    with ArchiveReader("c.upz", PACK) as reader:
        by_name = {entry.member.name: entry.member for entry in reader.entries}
        assert sorted(by_name) == [".", "link-a", "link-b", "sub", "sub/a1", "sub/a2", "sub/b1", "sub/b2"]
        assert by_name["sub/b2"].back and by_name["link-b"].target == "sub/b1" and by_name["sub/b1"].mode == 0o640
    assert set(contents(Path("c.upz")).values()) == {b"the same in both files of a folder" * 9}


def test_what_appends_left_is_left_out(folder):
    first = encoded("a", {"1.jsonl": lines(1)})
    Path("2.jsonl").write_bytes(lines(2))
    encode_files(find_sources([Path("2.jsonl")]), first, SETTINGS, append=True)
    assert ArchiveReader(first, PACK).contents.gaps
    merge([first], "m.upz")
    assert contents(Path("m.upz")) == contents(first) and not ArchiveReader("m.upz", PACK).contents.gaps
    assert Path("m.upz").stat().st_size < first.stat().st_size
    encode_files(find_sources([encoded("b", {"3.txt": b"3"}).with_name("b") / "3.txt"]), Path("m.upz"), SETTINGS, True)
    assert set(contents(Path("m.upz"))) == {"1.jsonl", "2.jsonl", "3.txt"}


def test_documents_without_names(folder):
    paths = [documents("a.upz", [b"one", b""]), documents("empty.upz", []), documents("b.upz", [b"two"])]
    merge(paths, "c.upz")
    assert ArchiveReader("c.upz").decode() == [b"one", b"", b"two"]
    with pytest.raises(MismatchError, match=r"^a\.upz holds documents without names, f\.upz files; "):
        merge([encoded("f", {"f": b"x"}), *paths], "d.upz")
    merge([encoded("f", {"f": b"x"}), "empty.upz"], "d.upz")


def test_names_that_collide(folder):
    a, b = encoded("a", {"n": b"of a", "m/k": b"1"}), encoded("b", {"n": b"of b"})
    with pytest.raises(FormatError, match=r"^file name 'n': it is in a\.upz and in b\.upz; pass --folders"):
        merge([a, b], "c.upz")
    assert not Path("c.upz").exists()
    merge([a, b], "c.upz", folders=True)
    assert contents(Path("c.upz")) == {"a/m/k": b"1", "a/n": b"of a", "b/n": b"of b"}
    with pytest.raises(FormatError, match="rename one of the archives"):
        merge([a, a], "d.upz", folders=True)
    for other in ("m", "n/o"):  # a file where the other has a folder
        with pytest.raises(FormatError, match=r"file name '[mn]'"):
            merge([a, encoded(f"c-{other[0]}", {other: b"x", "q": b""})], "d.upz")


def test_other_packs_adaptations_and_windows(folder):
    a = encoded("a", {"1.jsonl": lines(1)}, ALONE)
    other = pack_of(b"another pack")
    for settings, what in [
        (replace(ALONE, pack=other), "packs"),
        (replace(ALONE, pack=recall_pack(), adaptation=Adaptation.RECALL), "adaptations"),
    ]:
        b = encoded(f"b-{what}", {"2.jsonl": lines(2)}, settings)
        with pytest.raises(MismatchError, match=rf"^a\.upz \(pack {PACK.sha256[:16]}.*{b}.*made with different {what}"):
            merge([a, b], "c.upz")
    found = read_contents(a.open("rb"))
    data = a.read_bytes()
    odd = replace(found, header=replace(found.header, window=7))
    Path("w.upz").write_bytes(data[: found.end] + write_footer(odd))
    with pytest.raises(MismatchError, match=r"a window of 7.* made with different windows"):
        merge([a, "w.upz"], "c.upz")
    merge([encoded("s", {"s": b"no model" * 9}, STORED_ONLY), a], "c.upz")
    assert set(contents(Path("c.upz"))) == {"s", "1.jsonl"}


def recall_pack():
    pack = pack_of(BLOB)
    pack.recall = {"tables": 1}
    return pack


def test_a_pack_that_one_holds_is_held(folder):
    holds = encoded("b", {"2.jsonl": lines(2)}, replace(ALONE, included=BLOB))
    merge([encoded("a", {"1.jsonl": lines(1)}, ALONE), holds, encoded("c", {"3": b"3"}, STORED_ONLY)], "d.upz")
    with ArchiveReader("d.upz") as reader:  # finds the pack
        assert reader.open("1.jsonl").read() == lines(1)
    assert Path("d.upz").read_bytes().count(BLOB) == 1
    documents("lie.upz", [b"x"], Header(b"another!"))
    with pytest.raises(FormatError, match=r"^lie\.upz: holds pack .* not the one it names"):
        merge(["lie.upz"], "e.upz")


def test_an_output_that_is_an_input(folder):
    a, b = encoded("a", {"1": b"1"}), encoded("b", {"2": b"2"})
    before = a.read_bytes()
    os.link(a, "linked.upz")
    for target in ("a.upz", "./a.upz", "linked.upz"):
        with pytest.raises(OutputError, match="it is the input"):
            merge([a, b], target)
    assert a.read_bytes() == before


def test_unfinished_and_damaged_inputs_are_named(folder):
    a = encoded("a", {"1.jsonl": lines(1)}, ALONE)
    Journal(partial(Path("b.upz")), b"job", False).add(b"D")
    with pytest.raises(FormatError, match=r"^b\.upz\.partial: .*interrupted encode.*--resume"):
        merge([a, "b.upz.partial"], "c.upz")
    data = a.read_bytes()
    Path("cut.upz").write_bytes(data[:-3])
    Path("none.upz").write_bytes(b"")
    Path("text.upz").write_bytes(b"some text")
    for name in ("cut.upz", "none.upz", "text.upz", "nowhere.upz"):
        with pytest.raises(FormatError, match=name):
            merge([a, name], "c.upz")
    os.mkfifo("pipe.upz")
    with pytest.raises(CodecError, match="nothing to merge"):
        merge([], "c.upz")
    assert not Path("c.upz").exists()


def test_chunks_that_lie(folder):
    """A reference to before the archive would mean another archive's record; a chunk must have its length and kind."""
    a = encoded("a", {"1.jsonl": lines(1)}, ALONE)
    found = read_contents(a.open("rb"))
    stream = BytesIO()
    chunks = ChunkWriter(stream, Header())
    chunks.add(replace(record(b"x" * 40), mode=Tag.SAME, payload=varint(1)))
    chunks.close([Member("x", size=40)])
    Path("back.upz").write_bytes(stream.getvalue())
    with pytest.raises(FormatError, match=r"^back\.upz: .*record 0: 1 records back, expected at most 0"):
        merge([a, "back.upz"], "c.upz")
    data = bytearray(a.read_bytes())
    data[found.offsets[1]] ^= 8  # another length
    Path("length.upz").write_bytes(data)
    with pytest.raises(FormatError, match=r"^length\.upz: .*record 1: its chunk at offset"):
        merge(["length.upz"], "c.upz")
    data[found.offsets[1]] ^= 8 | Tag.PACK ^ Tag.MODELLED
    Path("kind.upz").write_bytes(data)
    with pytest.raises(FormatError, match=r"^kind\.upz: "):
        merge(["kind.upz"], "c.upz")
    assert not Path("c.upz").exists()


def test_an_archive_that_changes_meanwhile(folder, monkeypatch):
    a, b = encoded("a", {"1": b"1"}), encoded("b", {"2": b"2"})

    def advance(amount: float) -> None:
        b.write_bytes(b.read_bytes() + b"Z")

    with pytest.raises(MismatchError, match=r"^b\.upz: changed while it was merged"):
        merge([a, b], "c.upz", advance=advance)


def test_hundreds_of_archives_in_little_memory(folder):
    """Payloads pass through; what is kept is the index."""
    texts = np.random.default_rng(0).integers(0, 256, (300, 1 << 16), np.uint8)
    paths = [documents(f"{n}.upz", [text.tobytes(), b"end"]) for n, text in enumerate(texts)]
    tracemalloc.start()
    merge(paths, "all.upz")
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 3 << 20, most  # of 19 MiB
    with ArchiveReader("all.upz") as reader:
        assert len(reader) == 600 and reader.decode([598, 2]) == [texts[299].tobytes(), texts[1].tobytes()]


def test_many_alike_files_can_be_read_again(folder):
    """Names alike shrink so far that the bound on an index of so small a file would refuse them."""
    members = [Member(f"{n:05}", mtime=0) for n in range(6_000)]
    for count in (1, 3_000, 6_000):
        index = Index(Header(), Header(), np.zeros(0, np.int64), np.zeros(0, np.int64), members[:count], [])
        found = read_contents(BytesIO(b"UPZ\1" + write_footer(index)))
        assert isinstance(found, Contents) and len(found.members) == count
    for n in range(0, 6_000, 1000):
        part = replace(index, members=[Member(f"{n}/{m.name}", Kind.FOLDER, mtime=0) for m in members[:1000]])
        Path(f"{n}.upz").write_bytes(b"UPZ\1" + write_footer(part))
    merge([f"{n}.upz" for n in range(0, 6_000, 1000)], "all.upz")
    assert len(describe(Path("all.upz").read_bytes())["files"]) == 6_000


def test_the_command(folder, monkeypatch, capsys):
    call = Call(monkeypatch, capsys)
    encoded("a", {"n": b"of a"}), encoded("b", {"n": b"of b"})
    assert "pass --folders" in call.refused("merge", "a.upz", "b.upz", "-o", "c.upz")
    found = call.json("merge", "a.upz", "b.upz", "-o", "c.upz", "--folders")
    size = Path("c.upz").stat().st_size
    assert found == {"archives": 2, "files": 2, "documents": 2, "text_bytes": 8, "archive_bytes": size}
    assert "--force" in call.refused("merge", "a.upz", "-o", "c.upz")
    assert "it is the input" in call.refused("merge", "a.upz", "b.upz", "-o", "b.upz", "-f")
    call.json("merge", "a.upz", "-o", "c.upz", "-f")
    assert Path("c.upz").read_bytes() == Path("a.upz").read_bytes()
    assert codec.merge(["a.upz"], "d.upz").files == 1


def test_streams_have_no_names(folder):
    for name in "ab":
        Path(name).write_bytes(name.encode() * 50)
        with Path(f"{name}.upz").open("wb") as out:
            encode_stream(find_sources([Path(name)]), out, SETTINGS)
    merge(["a.upz", "b.upz"], "c.upz")
    assert contents(Path("c.upz")) == {"a": b"a" * 50, "b": b"b" * 50}


def test_a_copy_behind_a_folder_that_is_left_out(folder):
    """Our encoder puts folders first; another may not."""
    stream = BytesIO()
    chunks = ChunkWriter(stream, Header())
    chunks.add(record(b"some text"))
    chunks.close([Member("f", size=9), Member("d", Kind.FOLDER), Member("g", back=2)])
    Path("b.upz").write_bytes(stream.getvalue())
    Path("a", "d").mkdir(parents=True)
    encode_files(find_sources([Path("a")]), Path("a.upz"), STORED_ONLY)
    merge(["a.upz", "b.upz"], "c.upz")
    assert contents(Path("c.upz")) == {"f": b"some text", "g": b"some text"}
