"""Cases that other compressors' users reported as bugs, and more of their kinds, each through the command line."""

import gzip
import io
import json
import os
import resource
import socket
import stat
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import pytest

from tests.codec.cli.test_commands import TEXT
from tests.codec.cli.test_text_commands import by_heart, call, folder, names, ok, piped
from tests.support.helpers import ROOT

pytestmark = pytest.mark.usefixtures("by_heart")
__all__ = ["by_heart", "call", "folder"]

GOOD = b'{"id": 7, "text": "some words", "url": "a/b"}\n'

LINES = {
    "more fields": GOOD * 3,
    "a key twice": b'{"text":"first","text":"second"}\n',
    "another order": b'{"text":"a","id":7}\n',
    "no spaces": b'{"text":"a"}\n',
    "spaces around": b'  {"text" :  "a" }  \n\t{"text":"b"}\n',
    "CRLF": GOOD.replace(b"\n", b"\r\n") * 2,
    "no last newline": GOOD + GOOD[:-1],
    "BOM": b"\xef\xbb\xbf" + GOOD,
    "escapes": rb'{"text": "caf\u00e9 \/ \u000a \ud83d\ude00 \n"}' + b"\n",
    "UTF-16-LE": '{"text": "a"}\n'.encode("utf-16-le"),
    "UTF-16 with BOM": '{"text": "a"}\n'.encode("utf-16"),
    "UTF-32": '{"text": "a"}\n'.encode("utf-32-le"),
    "blank lines": b"\n" + GOOD + b"\n\n   \n" + GOOD + b"\n",
    "one newline": b"\n",
    "empty": b"",
    "empty texts": b'{"text": ""}\n' * 3,
    "lone surrogate": GOOD + rb'{"text": "\ud800"}' + b"\n" + GOOD,
    "array": b'["text"]\n' + GOOD,
    "string": b'"text"\n',
    "number": b"12\n",
    "null": b'null\n{"text": null}\n',
    "no text": b'{"id": 1}\n',
    "invalid UTF-8": b'{"text": "a\xe9"}\n' + GOOD,
    "NUL": b'{"text": "a\0b"}\n',
    "CR alone": b'{"text": "a"}\r{"text": "b"}\r',
    "two objects in a line": b'{"text": "a"} {"text": "b"}\n',
    "cut line": GOOD + b'{"text": "a',
    "deep nesting": b'{"x": ' + b"[" * 100_000 + b"]" * 100_000 + b', "text": "a"}\n',
    "many digits": b'{"x": ' + b"1" * 5000 + b', "text": "a"}\n',
    "line separators": '{"text": "a\u2028b\u0085c"}\n'.encode(),
    "text within": b'{"x": {"text": "inner"}, "text": "outer"}\n',
    "binary": bytes(range(256)) * 20,
}


@pytest.mark.parametrize("name", LINES)
@pytest.mark.parametrize("end", [".jsonl", ".JSONL", ".ndjson"])
def test_lines_come_back(call, folder, name, end):
    (folder / f"x{end}").write_bytes(LINES[name])
    for options in ((), ("--independent",)):
        ok(call("encode", f"x{end}", "-f", *options))
        ok(call("decode", f"x{end}.upz", "-f", "-o", "back"))
        assert (folder / "back").read_bytes() == LINES[name]


def test_compressed_lines_are_files_like_others(call, folder):
    (folder / "x.jsonl.gz").write_bytes(gzip.compress(GOOD * 5))
    before = (folder / "x.jsonl.gz").read_bytes()
    ok(call("encode", "x.jsonl.gz", "--rm"))
    ok(call("decode", "x.jsonl.gz.upz"))
    assert (folder / "x.jsonl.gz").read_bytes() == before


ODD_NAMES = [
    "a b", " lead", "trail ", "new\nline", "tab\t", "quote\"'", "back\\slash", "*?[x]", "-dash", "--model", "\xe9",
    "e\u0301", "\u202ertl", "\U0001f600", "[bold]x", "[x]", "\x1b[31mred", "n" * 248, "%s{0}$HOME`id`",
    os.fsdecode(b"latin-\xe9"), "...", "a.upz", "CON", "~",
]  # fmt: skip


@pytest.mark.parametrize("name", ODD_NAMES)
def test_odd_names(call, folder, name):
    (folder / "in").mkdir()
    (folder / "in" / name).write_bytes(TEXT)
    (folder / "in" / f"x{name[:240]}").mkdir()
    ok(call("encode", "in", "-o", "a.upz", "-m", "none"))
    listed = call("decode", "-l", "a.upz")
    assert listed[0] == 0
    assert "\x1b" not in listed[1]
    ok(call("decode", "a.upz", "-o", "out"))
    assert {os.fsencode(p.relative_to("out")) for p in Path("out").rglob("*")} == {
        os.fsencode(p.relative_to("in")) for p in Path("in").rglob("*")
    }
    ok(call("decode", "a.upz", "--file", name, "-o", "one"))
    assert (folder / "one").read_bytes() == TEXT
    ok(call("encode", f"./in/{name}", "-o", "b.upz", "-m", "none"))
    ok(call("decode", "b.upz", "-o", "two"))
    assert (folder / "two").read_bytes() == TEXT


@pytest.mark.parametrize("length", [240, 246, 247, 248, 251, 255])
def test_long_names_of_outputs(call, folder, length):
    """The journal's name is longer than the output's; a name that nothing fits in is refused, and nothing is left."""
    ok(call("decode", *_encoded(call, "-o", "a.upz"), "-o", "n" * length))
    status, _, message = call("encode", "text.txt", "-m", "none", "-o", "m" * length)
    if status:
        assert status == 2
        assert "too long" in message
        assert ("m" * length) not in names(folder)
    else:
        ok(call("decode", "m" * length, "-o", "back"))
        assert (folder / "back").read_bytes() == TEXT


def _encoded(call, *options: str) -> list[str]:
    ok(call("encode", "text.txt", "-m", "none", *options))
    return [options[-1]]


def test_what_folders_hold(call, folder):
    """Links to files, folders, themselves, nowhere and outside; FIFOs and sockets; hard links; empty folders."""
    tree = folder / "in"
    (tree / "empty" / "deep").mkdir(parents=True)
    (tree / ".hidden").write_bytes(b"h")
    (tree / "file").write_bytes(TEXT)
    os.link(tree / "file", tree / "hard")
    for name, target in {"l1": "file", "l2": "empty", "self": "self", "nowhere": "none", "out": "/etc"}.items():
        (tree / name).symlink_to(target)
    os.mkfifo(tree / "fifo")
    with socket.socket(socket.AF_UNIX) as bound:
        os.chdir(tree)
        bound.bind("socket")
        os.chdir(folder)
        _, said = ok(call("encode", "in", "-o", "a.upz", "-m", "none"))
    assert said.count("left out") == 2
    ok(call("decode", "a.upz", "-o", "out"))
    (tree / "fifo").unlink()
    (tree / "socket").unlink()
    done = subprocess.run(["diff", "-r", "--no-dereference", "in", "out"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("mode", [0o600, 0o644, 0o755, 0o400, 0o444, 0o000, 0o4755, 0o2755, 0o1777, 0o640])
def test_modes_and_times(call, folder, mode):
    """As they were, never wider; setuid, setgid and sticky bits when asked for."""
    (folder / "in").mkdir()
    (folder / "in" / "f").write_bytes(TEXT)
    os.utime(folder / "in" / "f", ns=(1, 1_234_567_890_123_456_789))
    (folder / "in" / "f").chmod(mode)
    if not os.access("in/f", os.R_OK):
        pytest.skip("only root reads a file of mode 000")
    ok(call("encode", "in", "-o", "a.upz", "-m", "none"))
    assert not stat.S_IMODE(Path("a.upz").stat().st_mode) & ~(mode | 0o600)
    for name, options in {"plain": (), "special": ("--special-bits",)}.items():
        ok(call("decode", "a.upz", "-o", name, *options))
        found = (folder / name / "f").stat()
        assert found.st_mtime_ns == 1_234_567_890_123_456_789
        umask = os.umask(0)
        os.umask(umask)
        assert stat.S_IMODE(found.st_mode) == mode & ~umask & (0o7777 if options else 0o777)


@pytest.mark.parametrize(
    "command", [("tokenizer", "train", "t.txt", "-o", "t.txt"), ("bpb", "none.pack", "--docs", "t.txt")]
)
def test_no_command_destroys_its_input(call, folder, command):
    (folder / "t.txt").write_bytes(TEXT)
    assert call(*command)[0] == 2
    assert (folder / "t.txt").read_bytes() == TEXT


def test_a_partial_that_is_a_folder(call, folder):
    (folder / "d.upz.partial").mkdir()
    message = call.refused("encode", "text.txt", "-o", "d.upz")
    assert "in the way" in message
    assert "--resume" not in message


@pytest.mark.parametrize("size", [0, 1, 2, 4095, 4096, 4097, 8192, 8193, 65_536, 1 << 20])
@pytest.mark.parametrize("kind", ["zeros", "text", "noise"])
def test_sizes(call, folder, monkeypatch, size, kind):
    noise = b"".join((n * 2_654_435_761 % 2**32).to_bytes(4, "little") for n in range(1, size // 4 + 2))
    data = {"zeros": bytes(size), "text": (TEXT * (size // len(TEXT) + 1))[:size], "noise": noise[:size]}[kind]
    packed = piped(monkeypatch, call, data, "encode", "-", "-m", "none")
    assert piped(monkeypatch, call, packed, "decode", "-") == data


def test_ranges(call, folder):
    ok(call("encode", "text.txt", "-m", "none", "--restart-every", "4096"))
    size = len(TEXT)
    for first, last in ((0, 0), (0, 1), (1, size), (size, size), (size - 1, size), (5, 6)):
        ok(call("decode", "text.txt.upz", "--file", "text.txt", "--bytes", f"{first}:{last}", "-f", "-o", "part"))
        assert (folder / "part").read_bytes() == TEXT[first:last]
    for wrong in ("2:1", f"0:{size + 1}", "-1:2", "a:b", "1", ":-1", "0x1:3"):
        call.refused("decode", "text.txt.upz", "--file", "text.txt", "--bytes", wrong, "-f", "-o", "no")
    assert "no" not in names(folder)


def test_documents_of_plain_streams(call, folder, monkeypatch):
    ok(call("encode", "text.txt", "-m", "none"))
    for wrong in ("-1", "5", "99999999999999999999", "x"):
        assert call("decode", "text.txt.upz", "--document", wrong, "-o", "no")[0] == 2
    assert "no" not in names(folder)


@pytest.mark.parametrize(
    "junk", [b"", b"U", b"UPZ", b"PK\3\4" * 9, gzip.compress(TEXT, mtime=0), TEXT, bytes(300), b"UPZJ" + bytes(60)]
)
@pytest.mark.parametrize("words", [(), ("-t",), ("-l",)])
def test_what_is_no_archive(call, folder, junk, words):
    (folder / "x.upz").write_bytes(junk)
    call.refused("decode", "x.upz", *words)
    assert names(folder) == {"text.txt", "x.upz"}


def test_two_archives_one_behind_the_other(call, folder):
    ok(call("encode", "text.txt", "-m", "none"))
    twice = (folder / "text.txt.upz").read_bytes() * 2
    (folder / "x.upz").write_bytes(twice)
    call.refused("decode", "x.upz", "-o", "no")
    call.refused("inspect", "x.upz")
    assert "no" not in names(folder)


def test_closed_and_full_streams(call, folder, monkeypatch):
    ok(call("encode", "text.txt", "-m", "none"))
    with monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", full := Path("/dev/full").open("w"))  # noqa: SIM115
        assert "standard output" in call.refused("decode", "text.txt.upz", "-c")
    with suppress(OSError):
        full.close()
    with monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", None)
        assert call("encode", "text.txt", "-c", "-m", "none")[0] == 2
        assert call("encode", "text.txt", "-f", "-m", "none", "-q")[0] == 0
    with monkeypatch.context() as patched:
        patched.setattr(sys, "stderr", None)
        assert call("encode", "text.txt", "-f", "-v", "-m", "none")[0] == 0


@pytest.mark.parametrize(
    "words", [("encode", "text.txt", "-o", "/dev/full"), ("decode", "a.upz", "-f", "-o", "/dev/full")]
)
def test_a_full_device(call, folder, words):
    ok(call("encode", "text.txt", "-m", "none", "-o", "a.upz"))
    assert "/dev/full" in call.refused(*words)
    assert stat.S_ISCHR(Path("/dev/full").stat().st_mode)


@pytest.mark.parametrize(
    "words", [("encode", "noise", "-m", "none"), ("decode", "noise.upz", "-o", "back"), ("decode", "tree.upz")]
)
def test_no_room(call, folder, words):
    """A limit on the size of files stands for a full disk."""
    (folder / "in").mkdir()
    for path in (folder / "noise", folder / "in" / "noise"):
        path.write_bytes(os.urandom(70_000))  # so much noise is stored
    ok(call("encode", "noise", "-m", "none"))
    ok(call("encode", "in", "-o", "tree.upz", "-m", "none"))
    if words[0] == "encode":
        (folder / "noise.upz").unlink()
    before, most = names(folder), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, most[1]))
    try:
        status, _, err = call(*words, "-q")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, most)
    assert (status, err.count("\n")) == (2, 1)
    assert "File too large: '" in err
    assert names(folder) == before


def test_without_a_home():
    """Encode and decode as a container's user, whose home does not exist."""
    with tempfile.TemporaryDirectory() as place:
        work = Path(place)
        work.chmod(0o777)
        (work / "noise").write_bytes(os.urandom(70_000))  # stored, so that nothing is compiled
        environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "HOME": "/nonexistent", "TMPDIR": place}
        for words in ("encode noise -m none", "decode -t noise.upz", "inspect noise.upz"):
            done = subprocess.run(
                [sys.executable, "-m", "underpar", *words.split()],
                cwd=work,
                env=environment,
                capture_output=True,
                check=False,
            )
            assert done.returncode == 0, done.stderr
            assert b"Traceback" not in done.stderr
        assert {path.name for path in work.iterdir() if not path.name.startswith("underpar-")} == {"noise", "noise.upz"}


def test_equal_files_and_copies(call, folder):
    (folder / "in").mkdir()
    for n in range(50):
        (folder / "in" / str(n)).write_bytes(TEXT if n % 2 else b"")
    ok(call("encode", "in", "-o", "a.upz", "-m", "none"))
    ok(call("decode", "a.upz", "-o", "out"))
    assert {p.name: p.read_bytes() for p in Path("out").iterdir()} == {
        p.name: p.read_bytes() for p in Path("in").iterdir()
    }
    assert (folder / "a.upz").stat().st_size < len(TEXT) + 1500


def test_names_that_lead_nowhere_are_refused_before_work(call, folder):
    for words in (
        ("encode", "missing"),
        ("decode", "missing.upz"),
        ("decode", "-l", "missing"),
        ("inspect", "missing"),
    ):
        assert "missing" in call.refused(*words)
    for words in (("encode", "text.txt", "-o", "text.txt/x"), ("encode", "text.txt", "-T", "0")):
        assert call(*words)[0] == 2
    assert names(folder) == {"text.txt"}


def test_a_terminal_of_few_characters(folder, call):
    """A legacy locale, in a process of its own: what the terminal lacks is escaped."""
    (folder / "caf\xe9 \u2026 \U0001f600").write_bytes(b"x")
    ok(call("encode", "caf\xe9 \u2026 \U0001f600", "text.txt", "-o", "a.upz", "-m", "none"))
    for encoding in ("latin-1", "ascii"):
        environment = {**os.environ, "PYTHONIOENCODING": encoding, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-O", "-m", "underpar", "decode", "-l", "a.upz"]
        done = subprocess.run(command, capture_output=True, env=environment, check=False)
        assert done.returncode == 0, done.stderr
        assert b"Traceback" not in done.stderr


def test_json_has_every_name(call, folder):
    ok(call("encode", "text.txt", "-m", "none"))
    about = json.loads(call("decode", "-l", "text.txt.upz", "--json")[1])
    assert about["files"][0]["name"] == "text.txt"
    stream = io.StringIO(call("inspect", "text.txt.upz", "--json")[1])
    assert json.load(stream)["text_bytes"] == len(TEXT)
