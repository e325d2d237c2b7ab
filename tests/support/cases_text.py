# ruff: noqa: PTH101, PTH102, PTH103, PTH107, PTH109, PTH116, PTH202, PTH208, PTH211
"""The log of cases in which an early underpar failed, tried again: `python -m tests.support.cases_text`.

The log was made in the manner of other tools' bug reports. One row of the table for each of its rows; a row has what is
expected today, what came, and the test that keeps the right value. Commands run in forks of one warm process.
"""

import gzip
import io
import lzma
import os
import random
import resource
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.codec.cli.test_cases import GOOD, LINES
from tests.support.helpers import ROOT
from trainer.data.sample import val_documents

TEXT = b"\n".join(val_documents())
CASES: list[tuple[str, str, str, Callable[[], None]]] = []
MODEL = ROOT / "artifacts" / "models" / "small.pack"


def case(section: str, what: str, test: str = "") -> Callable[[Callable[[], None]], Callable[[], None]]:
    """Add a case: its section of the log, what is tried, and the test that covers it."""

    def add(function: Callable[[], None]) -> Callable[[], None]:
        CASES.append((section, what, test, function))
        return function

    return add


def u(*words: str, stdin: bytes = b"", closed: int | None = None) -> tuple[int, bytes, str]:
    """Run a command in a fork: (status, standard output, standard error)."""
    with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        given.write(stdin)
        given.seek(0)
        child = os.fork()
        if not child:
            for number, file in enumerate((given, out, err)):
                os.dup2(file.fileno(), number)
            if closed is not None:
                os.close(closed)
            sys.stdin, sys.stdout, sys.stderr = (
                None if n == closed else io.TextIOWrapper(io.FileIO(n, "rw"[n > 0], closefd=False), write_through=True)
                for n in range(3)
            )
            _end(words)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        out.seek(0)
        err.seek(0)
        return status, out.read(), err.read().decode(errors="replace")


def _end(words: tuple[str, ...]) -> None:
    from underpar.cli import main

    sys.argv = ["underpar", *words]
    code: Any = 1
    try:
        main()
        code = 0
    except SystemExit as ended:
        code = ended.code or 0
    except BaseException:
        traceback.print_exc()
    with suppress(Exception):
        sys.stdout.flush()
    os._exit(code if isinstance(code, int) else 1)


def ok(result: tuple[int, bytes, str]) -> bytes:
    assert result[0] == 0, result
    return result[1]


def refused(result: tuple[int, bytes, str], *said: str) -> None:
    status, _, err = result
    assert status == 2, result
    assert "Traceback" not in err
    assert all(words in err for words in said), err


def write(name: str, data: bytes) -> Path:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def back(name: str, data: bytes, *options: str) -> bytes:
    """Encode a file by name, and check what comes back; return the archive."""
    write(name, data)
    ok(u("encode", name, "-o", "c.upz", "-f", *options))
    assert ok(u("decode", "c.upz", "-c")) == data
    return Path("c.upz").read_bytes()


def names() -> set[str]:
    return set(os.listdir())


LINES_TEST, CASES_TEST = "test_cases: lines come back", "test_cases"

for _name, _data in LINES.items():

    @case("1 JSON Lines", f"{_name}: by name, of standard input, alone and in a folder", LINES_TEST)
    def _(data: bytes = _data) -> None:
        back("x.jsonl", data)
        assert ok(u("decode", "-", stdin=ok(u("encode", "-", stdin=data)))) == data
        write("d/x.jsonl", data)
        write("d/b.txt", TEXT[:300])
        ok(u("encode", "d", "-o", "d.upz"))
        ok(u("decode", "d.upz", "-o", "out"))
        assert subprocess.run(["diff", "-r", "d", "out"], check=False).returncode == 0


@case(
    "1 JSON Lines",
    "20 MB line with an invalid byte: exact; and a short error of `prove`",
    "a long line makes a short error",
)
def _() -> None:
    back("b.jsonl", b'{"text": "' + b"a" * 20_000_000 + b'\xe9"}')
    refused(result := u("prove", str(MODEL), "--docs", "b.jsonl"))
    assert len(result[2]) < 2000


@case("1 JSON Lines", "20 MB line, repetitive; 72 MB line", LINES_TEST)
def _() -> None:
    for size in (20_000_000, 72_000_000):
        back("x.jsonl", b'{"text": "' + b"ab " * (size // 3) + b'"}\n')


@case("1 JSON Lines", ".jsonl.gz, .xz by name: files like others", "compressed lines are files like others")
def _() -> None:
    back("x.jsonl.gz", gzip.compress(GOOD * 50, mtime=0))
    back("x.jsonl.xz", lzma.compress(GOOD * 50))


@case("1 JSON Lines", "`--document 0 --document 1` can be told apart", "documents of lines")
def _() -> None:
    write("x.jsonl", b'{"text": "one"}\n{"text": "two"}\n')
    ok(u("encode", "x.jsonl"))
    assert ok(u("decode", "x.jsonl.upz", "--document", "0", "--document", "1", "-c")) == b"one\ntwo\n"


@case("1 JSON Lines", "`prove` of an empty file: nothing to prove; `bpb` of an empty text; text: null", "eval tests")
def _() -> None:
    for data in (b"", b"\n"):
        write("e.jsonl", data)
        assert u("prove", str(MODEL), "--docs", "e.jsonl")[0] == 2
    refused(u("bpb", str(MODEL), "--docs", str(write("n.jsonl", b'{"text": null}\n')), "--policy", "document"), "text")


OUTPUTS, TEXTS = "2 Outputs", "test_text_commands"


@case(
    OUTPUTS, "`-o /dev/null`, `/dev/stdout`, a FIFO, `/dev/full`: written in place", "fifos and devices; a full device"
)
def _() -> None:
    write("a", TEXT[:500])
    ok(u("encode", "a"))
    for words in (("decode", "a.upz"), ("encode", "a")):
        ok(u(*words, "-o", "/dev/null", "-f"))
        refused(u(*words, "-o", "/dev/full", "-f"), "/dev/full")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode) and stat.S_ISCHR(os.stat("/dev/full").st_mode)
    os.mkfifo("f")
    reader = subprocess.Popen(["cat", "f"], stdout=subprocess.PIPE)
    ok(u("decode", "a.upz", "-o", "f"))
    assert reader.communicate(timeout=60)[0] == TEXT[:500] and stat.S_ISFIFO(os.stat("f").st_mode)


@case(OUTPUTS, "output equal to an input or to the model, also through `sub/..`", "no command destroys its input")
def _() -> None:
    shutil.copy(MODEL, "p.pack")
    write("a", TEXT[:500])
    write("sub/b", b"")
    ok(u("encode", "a", "-m", "p.pack"))
    for words in (
        "encode a -o p.pack -m p.pack -f",
        "decode a.upz -o p.pack -m p.pack -f",
        "encode a -o a -f",
        "encode a -o sub/../a -f",
        "decode a.upz -o a.upz -f",
        "tokenizer train a -o a --vocab-size 300",
    ):
        refused(u(*words.split()))
    assert Path("a").read_bytes() == TEXT[:500] and Path("p.pack").read_bytes() == MODEL.read_bytes()


@case(
    OUTPUTS,
    "a neighbour `book.partial`, an input `w.upz.partial`, a link at the partial's name",
    "a neighbour that looks like a journal",
)
def _() -> None:
    write("a", TEXT[:500])
    write("book.partial", b"mine")
    u("encode", "a", "-o", "book")
    assert Path("book.partial").read_bytes() == b"mine"
    write("w.upz.partial", b"precious")
    u("encode", "w.upz.partial", "-o", "w.upz")
    u("encode", "w.upz.partial", "-o", "w.upz", "--resume")
    assert Path("w.upz.partial").read_bytes() == b"precious"
    write("victim", b"victim")
    os.symlink("victim", "v.upz.partial")
    u("encode", "a", "-o", "v.upz", "-f")
    assert Path("victim").read_bytes() == b"victim"


@case(OUTPUTS, "an output that is there, also 0444; a link as output", "default names; links are followed with force")
def _() -> None:
    write("a", TEXT[:500])
    write("a.upz", b"there").chmod(0o444)
    refused(u("encode", "a"), "--force")
    assert Path("a.upz").read_bytes() == b"there"
    write("target", b"old")
    os.symlink("target", "link.upz")
    refused(u("encode", "a", "-o", "link.upz"))
    ok(u("encode", "a", "-o", "link.upz", "-f"))
    assert Path("link.upz").is_symlink() and Path("target").read_bytes()[:3] == b"UPZ"


@case(OUTPUTS, "mode and time of a single file", "modes and times")
def _() -> None:
    write("s", b"secret").chmod(0o600)
    os.utime("s", ns=(10**18, 10**18))
    ok(u("encode", "s"))
    assert stat.S_IMODE(os.stat("s.upz").st_mode) == 0o600
    os.remove("s")
    ok(u("decode", "s.upz"))
    assert (stat.S_IMODE(os.stat("s").st_mode), os.stat("s").st_mtime_ns) == (0o600, 10**18)


@case(OUTPUTS, "an output that is a folder, empty, or too long; a partial that is a folder", "outputs that cannot be")
def _() -> None:
    write("a", TEXT[:500])
    os.mkdir("d")
    os.mkdir("d.upz.partial")
    ok(u("encode", "a"))
    for words in (
        ["encode", "a", "-o", "d"],
        ["encode", "a", "-o", ""],
        ["decode", "a.upz", "-o", ""],
        ["encode", "a", "-o", "d.upz"],
    ):
        refused(u(*words))
    ok(u("encode", "a", "-o", "n" * 240 + ".upz"))
    assert names() == {"a", "a.upz", "d", "d.upz.partial", "n" * 240 + ".upz"}


@case(OUTPUTS, "`-o -`, `decode -`; missing inputs make no folder", "pipes")
def _() -> None:
    write("a", TEXT[:500])
    assert ok(u("decode", "-", stdin=ok(u("encode", "a", "-o", "-")))) == TEXT[:500]
    refused(u("encode", "missing", "-o", "new/x.upz"), "missing")
    assert names() == {"a"}


@case(OUTPUTS, "closed standard streams", "a closed pipe is quiet and streams may be closed")
def _() -> None:
    write("a", TEXT[:500])
    ok(u("encode", "a", closed=0))
    refused(u("decode", "a.upz", "-c", closed=1))
    ok(u("decode", "a.upz", "-f", closed=2))


@case(OUTPUTS, "no room: encode, decode, a folder", "no room")
def _() -> None:
    write("t/a", random.Random(1).randbytes(90_000))
    ok(u("encode", "t"))
    before, most = names(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, most[1]))
    results = [u("decode", "t.upz", "-o", "x"), u("encode", "t/a", "-o", "y.upz")]
    resource.setrlimit(resource.RLIMIT_FSIZE, most)
    for result in results:
        refused(result, "too large")
    assert names() == before


FOLDERS = "3 Folders"


@case(
    FOLDERS,
    "odd names, empty files and folders, links, modes, times, FIFOs and sockets left out",
    "what folders hold; odd names; modes and times",
)
def _() -> None:
    for name in (
        "a b",
        "new\nline",
        "tab\t",
        "back\\slash",
        "-dash",
        "--model",
        "*?",
        "\x1b[31m",
        "n" * 255,
        ".git/x",
        "é",
        "e\u0301",
    ):
        write(f"t/{name}", name.encode()).chmod(0o640)
    Path(os.fsdecode(b"t/caf\xe9")).write_bytes(b"latin")
    os.makedirs("t/empty/er")
    for name, target in (("in", "a b"), ("dangling", "nowhere"), ("loop", "loop"), ("out", "/etc"), ("up", "..")):
        os.symlink(target, f"t/{name}")
    os.chmod("t/empty", 0o700)
    os.utime("t/a b", ns=(5, 10**18))
    os.mkfifo("t/fifo")
    socket.socket(socket.AF_UNIX).bind("t/socket")
    ok(u("encode", "t"))
    ok(u("decode", "t.upz", "-o", "back"))
    os.remove("t/fifo")
    os.remove("t/socket")
    script = "cd {}; find . -mindepth 1 -printf '%p %y %l %m %s %T@\\n' | sort"
    listings = [subprocess.run(["sh", "-c", script.format(d)], capture_output=True).stdout for d in ("t", "back")]
    assert listings[0] == listings[1]


@case(
    FOLDERS,
    "equal base names of two inputs; 2,000 small files; an archive given to `tar -x` of itself",
    "equal names keep their paths",
)
def _() -> None:
    for n in range(2000):
        write(f"t/{n}", TEXT[37 * n : 37 * n + 60])
    write("a/README", b"one")
    write("b/README", b"two")
    ok(u("encode", "a/README", "b/README", "t", "-o", "all.upz"))
    ok(u("decode", "all.upz", "-o", "back"))
    assert Path("back/a/README").read_bytes() == b"one" and Path("back/b/README").read_bytes() == b"two"
    joined = b"".join(Path(f"t/{n}").read_bytes() for n in range(2000))
    ok(u("encode", "t"))
    assert os.path.getsize("t.upz") < len(lzma.compress(joined, preset=9 | lzma.PRESET_EXTREME))


FOREIGN = "5 Foreign and damaged"


@case(FOREIGN, "what is no archive", "what is no archive")
def _() -> None:
    ok(u("encode", str(write("a", TEXT[:300]))))
    good = Path("a.upz").read_bytes()
    for data in (
        gzip.compress(b"x", mtime=0),
        b"text\n",
        b"",
        b"UPZ",
        MODEL.read_bytes(),
        good.replace(b"\n", b"\r\n") + b"\r",
        b"\xef\xbb\xbf" + good,
    ):
        refused(u("decode", str(write("x.upz", data)), "-o", "y"))
    assert "y" not in names()


@case(
    FOREIGN,
    "every byte flipped, every truncation, garbage behind",
    "every flipped byte is found; campaigns in trust.md",
)
def _() -> None:
    ok(u("encode", str(write("a", TEXT[:80]))))
    good = Path("a.upz").read_bytes()
    damaged = [good[:n] + bytes([good[n] ^ 1 << n % 8]) + good[n + 1 :] for n in range(len(good))]
    for data in (*damaged[::3], *(good[:n] for n in range(0, len(good), 5)), good + b"\n"):
        status, out, err = u("decode", "-", stdin=data)
        assert status == 2 and "Traceback" not in err and not (status == 0 and out != TEXT[:80])


@case(
    FOREIGN,
    "two archives joined, a newline behind: refused, and salvaged",
    "two archives one behind the other; salvage",
)
def _() -> None:
    write("a", TEXT[:300])
    ok(u("encode", "a"))
    good = Path("a.upz").read_bytes()
    refused(u("inspect", str(write("c.upz", good + good))))
    refused(u("decode", "c.upz", "-o", "x"))
    assert u("salvage", str(write("d.upz", good + b"\n")), "-o", "saved")[0] in (0, 1)
    assert any(path.read_bytes() == TEXT[:300] for path in Path("saved").rglob("*") if path.is_file())


@case(FOREIGN, "`--document` -1, 5, x", "a session in docs/cli.md")
def _() -> None:
    ok(u("encode", str(write("a", TEXT[:300]))))
    for number in ("-1", "5", "x"):
        assert u("decode", "a.upz", "--document", number, "-c")[0] == 2


INTERRUPTS = "6 Interrupts"


@case(
    INTERRUPTS,
    "SIGINT, SIGTERM, SIGHUP, SIGKILL in decode: only SIGKILL leaves anything",
    "an interrupted encoding goes on; test_killing",
)
def _() -> None:
    ok(u("encode", str(write("t/a", TEXT[:60_000])), "-o", "a.upz"))
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        child = os.fork()
        if not child:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            os.dup2(os.open("/dev/null", os.O_RDWR), 2)
            _end(("decode", "a.upz", "-o", "out"))
        time.sleep(2.5)
        os.kill(child, number)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) in (128 + number, 0)
        assert names() <= {"t", "a.upz", "out"}
        with suppress(OSError):
            os.remove("out")


@case(
    "9 Friendliness",
    "--version, -V, -h; suggestions; names of packs; --list",
    "questions about the command line; words of other tools",
)
def _() -> None:
    for words in ("--version", "-V", "-h", "--help"):
        assert ok(u(words))
    for words, said in (("encod", "encode"), ("compress", "encode"), ("encode --modle x", "--model")):
        status, out, err = u(*words.split())
        assert status == 2 and said in err + out.decode()
    ok(u("encode", str(write("file.txt", TEXT[:300])), "--model", "small"))
    assert b"file.txt" in ok(u("decode", "-l", "file.txt.upz"))
    refused(u("encode", "file.txt", "--model", "smal"), "small")


def main() -> None:
    """Try all cases, each in a new folder, and print the table."""
    from codec.archive import decode_files, encode_files, part_coder  # noqa: F401 (loaded before forks)
    from codec.archive.whole import salvage  # noqa: F401
    from codec.backends.cpu import backend  # noqa: F401
    from codec.cli import decode, encode  # noqa: F401
    from codec.text.solid import blocks  # noqa: F401

    only = sys.argv[1:]
    print("| section of the log | case | now | test |\n|---|---|---|---|", flush=True)
    for section, what, test, function in CASES:
        if only and not any(word in section for word in only):
            continue
        with tempfile.TemporaryDirectory() as folder:
            here = os.getcwd()
            os.chdir(folder)
            try:
                function()
                verdict = "ok"
            except Exception as error:
                verdict = f"**fails**: {' '.join(str(error).split())[:300]}"
            finally:
                os.chdir(here)
        print(f"| {section} | {what} | {verdict} | {test} |", flush=True)


if __name__ == "__main__":
    main()
