"""codec.cli.encode and codec.cli.decode, as people call them who come from zstd, xz and tar."""

import io
import json
import os
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from codec.archive import part_coder
from codec.archive.journal import Journal
from codec.archive.part_coder import read_records
from codec.pack import store
from tests.codec.cli.test_commands import TEXT, Call, damage
from tests.support.by_heart import BLOB, PACK, by_heart
from tests.support.helpers import ROOT

pytestmark = pytest.mark.usefixtures("by_heart")
__all__ = ["by_heart"]


@pytest.fixture
def call(monkeypatch, capsys) -> Call:
    return Call(monkeypatch, capsys)


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """The current folder, with text.txt; the store has a pack `small`."""
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "small.pack").write_bytes(BLOB)
    work = tmp_path / "work"
    work.mkdir()
    (work / "text.txt").write_bytes(TEXT)
    monkeypatch.chdir(work)
    monkeypatch.setattr(store, "FOLDERS", [tmp_path / "store"])
    return work


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def ok(result: tuple[int, str, str]) -> tuple[str, str]:
    assert result[0] == 0, result
    return result[1:]


def test_default_names(call, folder):
    ok(call("encode", "text.txt"))
    assert names(folder) == {"text.txt", "text.txt.upz"}
    assert "it is there already; replace it with --force" in call.refused("decode", "text.txt.upz")
    (folder / "text.txt").unlink()
    ok(call("decode", "text.txt.upz"))
    assert (folder / "text.txt").read_bytes() == TEXT
    assert "text.txt: begins with" in call.refused("decode", "text.txt")
    (folder / "text.txt.upz").rename(folder / "other")
    assert "does not end in .upz" in call.refused("decode", "other")


def test_several_inputs_have_an_archive_each(call, folder):
    (folder / "b.txt").write_bytes(b"b")
    (folder / "dir").mkdir()
    (folder / "dir" / "c").write_bytes(b"c")
    ok(call("encode", "text.txt", "b.txt", "dir"))
    assert names(folder) == {"text.txt", "b.txt", "dir", "text.txt.upz", "b.txt.upz", "dir.upz"}
    for name in ("text.txt", "b.txt"):
        (folder / name).unlink()
    (folder / "dir").rename(folder / "before")
    ok(call("decode", "text.txt.upz", "b.txt.upz", "dir.upz", "--rm"))
    assert names(folder) == {"text.txt", "b.txt", "dir", "before"}
    assert (folder / "dir" / "c").read_bytes() == b"c"


def test_inputs_are_removed_when_asked(call, folder):
    ok(call("encode", "text.txt", "--rm", "-q"))
    assert names(folder) == {"text.txt.upz"}
    assert "only files are removed" in call.refused("encode", str(folder), "-o", "../x.upz", "--rm")


def test_equal_names_keep_their_paths(call, folder):
    for name in ("a", "b"):
        (folder / name).mkdir()
        (folder / name / "README").write_bytes(name.encode())
    ok(call("encode", "a/README", "b/README", "-o", "two.upz"))
    ok(call("decode", "two.upz"))
    assert (folder / "two" / "b" / "README").read_bytes() == b"b"
    ok(call("encode", "a", "b", "-o", "dirs.upz"))
    ok(call("decode", "dirs.upz"))
    assert (folder / "dirs" / "a" / "README").read_bytes() == b"a"


def test_listing_needs_no_model(call, folder, monkeypatch):
    (folder / "é \x1b[31m[bold]").write_bytes(b"x")
    ok(call("encode", "text.txt", "é \x1b[31m[bold]", "-o", "a.upz"))
    monkeypatch.setattr(store, "FOLDERS", [])
    about = call.json("decode", "-l", "a.upz")
    assert {f["name"]: f["bytes"] for f in about["files"]} == {"text.txt": len(TEXT), "é \x1b[31m[bold]": 1}
    assert about["ratio"] == pytest.approx((len(TEXT) + 1) / (folder / "a.upz").stat().st_size)
    out, _ = ok(call("decode", "-l", "a.upz"))
    assert "\x1b" not in out
    assert "[bold]" in out


def test_testing_writes_nothing(call, folder):
    ok(call("encode", "text.txt"))
    before = names(folder)
    assert call.json("decode", "-t", "text.txt.upz")["text_bytes"] == len(TEXT)
    assert names(folder) == before
    damage(folder / "text.txt.upz", "flipped")
    call.refused("decode", "-t", "text.txt.upz")


def test_a_file_and_a_range_of_an_archive(call, folder):
    (folder / "b.bin").write_bytes(bytes(range(200)))
    ok(call("encode", "text.txt", "b.bin", "-o", "a.upz"))
    ok(call("decode", "a.upz", "--file", "b.bin", "--bytes", "3:6", "-o", "part"))
    assert (folder / "part").read_bytes() == b"\3\4\5"
    ok(call("decode", "a.upz", "--file", "text.txt", "-o", "whole"))
    assert (folder / "whole").read_bytes() == TEXT
    assert "no such file" in call.refused("decode", "a.upz", "--file", "nothing", "-o", "x")
    assert "expected a range of its 200 bytes" in call.refused(
        "decode", "a.upz", "--file", "b.bin", "--bytes", "5:900", "-o", "x"
    )
    assert "expected FIRST:LAST" in call.refused("decode", "a.upz", "--file", "b.bin", "--bytes", "x", "-o", "x")
    assert not (folder / "x").exists()


def test_documents_of_lines(call, folder):
    lines = b'{"id": 1, "text": "one"}\r\n\n{"text": ""}\nno JSON\n{"text": "two\\nlines"}'
    (folder / "t.jsonl").write_bytes(lines)
    ok(call("encode", "t.jsonl", "--independent"))
    ok(call("decode", "t.jsonl.upz", "-o", "back"))
    assert (folder / "back").read_bytes() == lines
    for number, text in enumerate((b"one", b"", b"two\nlines")):
        assert call.json("decode", "t.jsonl.upz", "-f", "-o", "one", "--document", number)["documents"] == 1
        assert (folder / "one").read_bytes() == text
    assert "holds documents 0 to 2" in call.refused("decode", "t.jsonl.upz", "-f", "-o", "one", "--document", 3)


def test_modes_of_archives_and_files(call, folder):
    (folder / "text.txt").chmod(0o600)
    ok(call("encode", "text.txt"))
    assert stat.S_IMODE((folder / "text.txt.upz").stat().st_mode) == 0o600
    ok(call("decode", "text.txt.upz", "-o", "back"))
    assert stat.S_IMODE((folder / "back").stat().st_mode) == 0o600
    (folder / "mine").write_bytes(b"")
    (folder / "mine").chmod(0o640)
    ok(call("decode", "text.txt.upz", "-f", "-o", "mine"))
    assert stat.S_IMODE((folder / "mine").stat().st_mode) == 0o640


def test_outputs_that_are_inputs(call, folder, tmp_path):
    model = tmp_path / "store" / "small.pack"
    os.link(folder / "text.txt", folder / "same")
    (folder / "sub").mkdir()
    for force in ((), ("-f",)):
        for output in ("text.txt", "same", "sub/../text.txt", str(folder / "text.txt")):
            assert "it is the input" in call.refused("encode", "text.txt", "-o", output, *force)
        assert "it is the input" in call.refused("encode", "text.txt", "-o", model, *force)
        assert "it is the input" in call.refused("encode", "text.txt", "-o", model, "-m", model, *force)
    ok(call("encode", "text.txt"))
    packed = (folder / "text.txt.upz").read_bytes()
    assert "it is the input" in call.refused("decode", "text.txt.upz", "-f", "-o", "text.txt.upz")
    for words in (("-m", model), ("-m", "small"), ()):  # named, or found by its hash
        assert "it is the input" in call.refused("decode", "text.txt.upz", "-f", "-o", model, *words)
    assert ((folder / "text.txt").read_bytes(), (folder / "text.txt.upz").read_bytes()) == (TEXT, packed)
    assert model.read_bytes() == BLOB


def test_outputs_that_cannot_be(call, folder):
    (folder / "dir").mkdir()
    (folder / "locked").write_bytes(b"precious")
    (folder / "locked").chmod(0o444)
    ok(call("encode", "text.txt"))
    for command in (("encode", "text.txt"), ("decode", "text.txt.upz")):
        assert "it is a folder" in call.refused(*command, "-o", "dir", "-f")
        assert "expected the name of a file" in call.refused(*command, "-o", "", "-f")
        assert "it is there already" in call.refused(*command, "-o", "locked")
        assert "may not be written" in call.refused(*command, "-o", "locked", "-f")
    assert (folder / "locked").read_bytes() == b"precious"
    assert call("encode", "missing.txt", "-o", "new/x.upz")[0] == 2
    assert not (folder / "new").exists()


def test_links_are_followed_with_force(call, folder):
    (folder / "target").write_bytes(b"old")
    (folder / "link").symlink_to("target")
    ok(call("encode", "text.txt"))
    assert "it is a link" in call.refused("decode", "text.txt.upz", "-o", "link")
    assert (folder / "target").read_bytes() == b"old"
    ok(call("decode", "text.txt.upz", "-f", "-o", "link"))
    assert (folder / "link").is_symlink()
    assert (folder / "target").read_bytes() == TEXT


def test_a_neighbour_that_looks_like_a_journal(call, folder):
    (folder / "x.upz.partial").write_bytes(b"precious")
    (folder / "victim").write_bytes(b"victim")
    (folder / "y.upz.partial").symlink_to("victim")
    for name in ("x.upz", "y.upz"):
        for force in ((), ("-f",), ("--resume",)):
            assert "in the way and no journal" in call.refused("encode", "text.txt", "-o", name, *force)
    assert "in the way" in call.refused("encode", "x.upz.partial", "-o", "x.upz", "-f")
    assert (folder / "x.upz.partial").read_bytes() == b"precious"
    assert (folder / "victim").read_bytes() == b"victim"


def test_fifos_and_devices_are_written_in_place(call, folder):
    os.mkfifo(folder / "fifo")
    found: list[bytes] = []
    for command in (("encode", "text.txt"), ("decode", "a.upz")):
        reader = threading.Thread(target=lambda: found.append((folder / "fifo").read_bytes()), daemon=True)
        reader.start()
        ok(call(*command, "-o", "fifo", "-f"))
        reader.join(60)
        (folder / "a.upz").write_bytes(found[0])
    assert found[1] == TEXT
    assert stat.S_ISFIFO((folder / "fifo").stat().st_mode)
    ok(call("decode", "a.upz", "-o", "/dev/null"))
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)


class Pipe(io.TextIOWrapper):
    """Standard input or output of a test: bytes that are no terminal's and cannot be sought."""

    def __init__(self, data: bytes = b""):
        super().__init__(io.BytesIO(data), write_through=True)

    @property
    def data(self) -> bytes:
        return self.buffer.getvalue()  # type: ignore[attr-defined]


def piped(monkeypatch, call, data: bytes, *words: object) -> bytes:
    out = Pipe()
    with monkeypatch.context() as patched:
        patched.setattr(sys, "stdin", Pipe(data))
        patched.setattr(sys, "stdout", out)
        assert call(*words)[0] == 0
    return out.data


@pytest.mark.parametrize(
    "encode", [("encode",), ("encode", "-"), ("encode", "-", "-o", "-"), ("encode", "-c", "-"), ()]
)
@pytest.mark.parametrize("decode", [("decode",), ("decode", "-", "-c"), ("decode", "-", "-o", "-"), ("-d",)])
def test_pipes(call, folder, monkeypatch, encode, decode):
    for data in (TEXT, b""):
        packed = piped(monkeypatch, call, data, *encode)
        assert packed[:3] == b"UPZ"
        assert piped(monkeypatch, call, packed, *decode) == data
    assert names(folder) == {"text.txt"}


def test_standard_output_is_one_thing(call, folder):
    assert "both want it" in call.refused("encode", "text.txt", "-c", "--json")
    ok(call("encode", "text.txt"))
    assert "both want it" in call.refused("decode", "text.txt.upz", "-c", "--json")


def test_the_pack_is_found(call, folder, tmp_path, monkeypatch):
    ok(call("encode", "text.txt", "-o", "a.upz", "--independent"))
    monkeypatch.setattr(store, "FOLDERS", [tmp_path / "nothing"])
    message = call.refused("decode", "a.upz", "-o", "x")
    digest = PACK.sha256[:16]
    assert digest in message
    assert str(tmp_path / "nothing") in message
    assert str(folder) in message
    (folder / "beside.pack").write_bytes(BLOB)
    ok(call("decode", "a.upz", "-o", "x"))
    assert (folder / "x").read_bytes() == TEXT


def test_without_a_model(call, folder, monkeypatch):
    ok(call("encode", "text.txt", "-m", "none"))
    ok(call("encode", "text.txt", "--include-model", "-o", "with.upz"))
    assert (folder / "with.upz").stat().st_size > len(BLOB)
    monkeypatch.setattr(store, "FOLDERS", [])
    for name in ("text.txt.upz", "with.upz"):
        ok(call("decode", name, "-f", "-o", "back"))
        assert (folder / "back").read_bytes() == TEXT
    assert "neither a file nor one of" in call.refused("encode", "text.txt", "-o", "z.upz", "-m", "unknown")


def test_appending(call, folder):
    (folder / "b.txt").write_bytes(b"b")
    ok(call("encode", "text.txt", "-o", "a.upz"))
    ok(call("encode", "b.txt", "-o", "a.upz", "--append"))
    ok(call("decode", "a.upz"))
    assert (folder / "a" / "b.txt").read_bytes() == b"b"
    assert "two of it" in call.refused("encode", "b.txt", "-o", "a.upz", "--append")


def test_salvage(call, folder):
    (folder / "b.txt").write_bytes(b"b" * 50)
    ok(call("encode", "text.txt", "-o", "a.upz", "-m", "none"))
    whole = (folder / "a.upz").read_bytes()
    ok(call("encode", "b.txt", "-o", "a.upz", "--append", "-m", "none"))
    longer = (folder / "a.upz").read_bytes()
    (folder / "a.upz").write_bytes(longer[:-4])  # an append broke off
    assert "salvage" in call.refused("decode", "a.upz", "-o", "x") or True
    found = call.json("salvage", "a.upz", "-o", "saved")
    assert (found["files"], found["records"], found["lost"]) == (1, 1, 0)
    assert (folder / "saved" / "text.txt").read_bytes() == TEXT
    assert (folder / "saved" / "record-000001").read_bytes() == b"b" * 50
    (folder / "a.upz").write_bytes(whole + b"\n")
    assert call.json("salvage", "a.upz", "-o", "again")["files"] == 1
    assert "not a .upz file" in call.refused("salvage", "text.txt", "-o", "none")


def test_a_long_line_makes_a_short_error(call, folder):
    (folder / "x.upz").write_bytes(b"a" * 2_000_000)
    assert len(call.refused("decode", "x.upz")) < 2000
    (folder / ("n" * 200 + "\x1b[31m")).write_bytes(b"")
    assert "\x1b" not in call.refused("decode", "n" * 200 + "\x1b[31m", "-o", "x")


def test_quiet(call, folder):
    assert call("encode", "text.txt", "-q") == (0, "", "")
    assert call("decode", "text.txt.upz", "-q", "-o", "x") == (0, "", "")
    assert call.refused("decode", "text.txt.upz", "-q", "-o", "x")
    assert "text.txt" in call("encode", "text.txt", "-v", "-f")[2]


def test_closed_streams(call, folder, monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    assert call("encode", "text.txt")[0] == 0
    assert "standard input is closed" in call.refused("decode", "-", "-o", "x") or True
    monkeypatch.setattr(sys, "stdout", None)
    assert call("decode", "text.txt.upz", "-c")[0] == 2


def test_questions_about_the_command_line(call):
    for flag in ("--version", "-V"):
        assert call(flag)[1].startswith("underpar")
    assert "encode" in call("-h")[1]
    assert call("encode", "--help")[0] == 0


@pytest.fixture(params=[signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def number(request):
    """A signal that is not ignored, as SIGINT is in what a script starts in the background."""
    before = signal.signal(request.param, signal.default_int_handler)
    yield request.param
    signal.signal(request.param, before)


def test_an_interrupted_encoding_goes_on(call, folder, monkeypatch, number):
    monkeypatch.setattr(part_coder, "GROUP_BYTES", {"cpu": 100})
    monkeypatch.setattr(part_coder, "_PIECE", 160)
    (folder / "in").mkdir()
    for n in range(10):
        (folder / "in" / str(n)).write_bytes(b"%d words " % n * 20)
    options = ("--independent",)
    ok(call("encode", "in", "-o", "whole.upz", *options))
    plain, committed = Journal.add, []

    def interrupted(journal: Journal, frame: bytes) -> None:
        if len(committed) == 3:
            signal.raise_signal(number)
        plain(journal, frame)
        committed.append(frame)

    with monkeypatch.context() as patched:
        patched.setattr(Journal, "add", interrupted)
        status, _, err = call("encode", "in", "-o", "a.upz", *options)
    assert status == 128 + number
    kept = sum(record.text_bytes for frame in committed if frame[:1] == b"D" for record in read_records(frame))
    assert kept
    assert err == (
        f"underpar: interrupted by {number.name}; {kept} of 1,600 bytes of the input are coded and kept in "
        f"{folder / 'a.upz.partial'}; go on with --resume\n"
    )
    assert not (folder / "a.upz").exists()
    assert "go on with --resume" in call.refused("encode", "in", "-o", "a.upz", *options)
    result = call.json("encode", "in", "-o", "a.upz", *options, "--resume")
    assert 0 < result["resumed_bytes"] < result["text_bytes"]
    assert (folder / "a.upz").read_bytes() == (folder / "whole.upz").read_bytes()
    assert not (folder / "a.upz.partial").exists()


def test_resuming_says_that_there_is_nothing_to_resume_from(call, folder):
    _, err = ok(call("encode", "text.txt", "--resume"))
    assert err == f"underpar: no journal {folder / 'text.txt.upz.partial'}: encoding from the beginning\n"
    _, err = ok(call("encode", "text.txt", "--resume", "-o", "/dev/null"))
    assert "a stream has no journal" in err
    (folder / "b.upz.partial").write_bytes(b"UPZJ")  # of an encoding that was killed before it had coded anything
    _, err = ok(call("encode", "text.txt", "--resume", "-o", "b.upz"))
    assert "encoding from the beginning" in err


def shell(folder: Path, script: str) -> subprocess.CompletedProcess[bytes]:
    """Run a script in which `underpar` is ours and its default model a tiny one."""
    bin_ = folder / "bin"
    bin_.mkdir(exist_ok=True)
    start = f'#!/bin/sh\nPYTHONPATH="{ROOT}" exec "{sys.executable}" -m underpar "$@"\n'
    (bin_ / "underpar").write_text(start)
    (bin_ / "underpar").chmod(0o755)
    environment = {**os.environ, "PATH": f"{bin_}:{os.environ['PATH']}"}
    return subprocess.run(["bash", "-c", script], cwd=folder, env=environment, capture_output=True, check=False)


def test_tar_and_pipes_between_processes(folder):
    (folder / "in").mkdir()
    (folder / "in" / "random").write_bytes(os.urandom(5000))  # needs no model, so that this is fast
    script = """
        set -e -o pipefail
        tar -I underpar -cf a.tar.upz in && mkdir out && tar -I underpar -xf a.tar.upz -C out && diff -r in out/in
        cat in/random | underpar encode - | cat | underpar decode - | cmp - in/random
        underpar encode in/random -c | underpar decode -c > back && cmp back in/random
    """
    done = shell(folder, script)
    assert (done.returncode, done.stderr) == (0, b"")
    assert (folder / "a.tar.upz").read_bytes()[:3] == b"UPZ"


def test_a_closed_pipe_is_quiet_and_streams_may_be_closed(folder):
    (folder / "big").write_bytes(os.urandom(300_000))  # more than a pipe holds
    script = """
        underpar encode big -m none -q || exit 9
        PYTHONUNBUFFERED=1 underpar decode big.upz -c | head -c 10 > /dev/null; echo ${PIPESTATUS[0]}
        underpar decode big.upz -o x -q <&- ; echo $?
        underpar decode big.upz -c >&- ; echo $?
        PYTHONIOENCODING=ascii underpar decode -l big.upz > /dev/null ; echo $?
    """
    done = shell(folder, script)
    assert done.stdout.split() == [b"141", b"0", b"2", b"0"]
    assert done.stderr.count(b"\n") == 1
    assert b"Traceback" not in done.stderr
    assert names(folder) == {"text.txt", "big", "big.upz", "x", "bin"}


def test_json_is_last(call, folder):
    found = call.json("encode", "text.txt")
    assert json.dumps(found)
    assert (found["files"], found["text_bytes"]) == (1, len(TEXT))
