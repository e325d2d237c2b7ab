"""Jobs that are killed at many moments, run as `python -m tests.support.killing FOLDER`: what they leave is whole or
not there.

A process of its own, because it forks: every attempt is a copy of a process that has loaded and compiled everything.
"""

import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import torch

import codec
from codec.archive import part_coder, reader
from codec.archive.decode_files import decode_files
from codec.archive.encode_files import Settings, encode_files, partial
from codec.archive.reader import ArchiveReader
from codec.archive.sources import find_sources
from codec.errors import CodecError
from tests.support.fuzzing import pack
from trainer.data.sample import val_documents

MOMENTS, KILLS = 14, 30


def run(job: Callable[[], object], seconds: float | None = None) -> bool:
    """Run a job in a forked process and kill it after `seconds`; whether it ended before."""
    child = os.fork()
    if not child:
        try:
            job()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return not os.WIFSIGNALED(status)


def timed(job: Callable[[], object]) -> float:
    begin = time.perf_counter()
    assert run(job)
    return time.perf_counter() - begin


def at_the_rename(job: Callable[[], object], after: bool) -> None:
    """Run a job that is killed right before or after its result takes its name, a file's or a folder's."""

    plain = Path.replace

    def replace(self: Path, target: Path) -> None:
        if after:
            plain(self, target)
        os.kill(os.getpid(), signal.SIGKILL)

    def killed() -> None:
        Path.replace = Path.rename = replace  # type: ignore[assignment, method-assign]
        job()

    assert not run(killed)


def encode(folder: Path, target: Path, **options: bool) -> None:
    encode_files(find_sources(sorted(folder.iterdir())), target, Settings(pack(), independent=True), **options)


def decode(target: Path, output: Path) -> None:
    with target.open("rb") as stream:
        decode_files(ArchiveReader(stream, pack()), output)


def campaign(root: Path) -> dict[str, int]:
    """Kill encoding, going on with it, appending, and decoding a file and a tree; returns how many kills struck."""
    torch.set_num_threads(1)  # a fork has no other threads
    part_coder.GROUP_BYTES, part_coder._PIECE, reader.GROUP_BYTES = {"cpu": 2000}, 600, {"cpu": 500}
    for name, first in (("in", 0), ("more", 30)):
        (root / name).mkdir()
        for n, text in enumerate(list(val_documents())[first : first + 30]):
            (root / name / f"{name}{n}").write_bytes(text[:600])
    whole, text, target = root / "whole.upz", root / "text", root / "a.upz"
    encode(root / "in", whole)
    decode(whole, root / "tree")
    text.write_bytes(b"".join(path.read_bytes() for path in sorted((root / "in").iterdir())))
    seconds = timed(lambda: encode(root / "in", root / "again.upz"))
    assert (root / "again.upz").read_bytes() == whole.read_bytes()
    kills = {"encode": 0, "append": 0, "tree": 0, "file": 0}

    for attempt in range(3 * MOMENTS):  # each goes on where the one before was killed
        done = run(lambda: encode(root / "in", target, resume=True), seconds * (2 + attempt) / MOMENTS)
        assert target.exists() or not done
        if target.exists():
            break
        kills["encode"] += 1
        refused(partial(target))
    assert target.read_bytes() == whole.read_bytes()

    run(lambda: encode(root / "more", root / "again.upz", append=True))
    longer = (root / "again.upz").read_bytes()
    for attempt in range(3 * MOMENTS):
        run(lambda: encode(root / "more", target, append=True, resume=True), seconds * (2 + attempt) / MOMENTS)
        if target.read_bytes() == longer:
            break
        kills["append"] += 1
        assert target.read_bytes() == whole.read_bytes()
    assert target.read_bytes() == longer
    partial(target).unlink(missing_ok=True)  # of a job that was killed when all but this was done

    single = root / "single.upz"
    encode_files(find_sources([text]), single, Settings(pack(), independent=True))
    out = root / "out"
    slow, fast = timed(lambda: decode(whole, root / "one")), timed(lambda: decode(single, root / "two"))
    for moment in range(MOMENTS):
        kills["tree"] += not run(lambda: decode(whole, out), slow * moment / MOMENTS)
        if out.exists():
            assert files(out) == files(root / "in")
            shutil.rmtree(out)
        out.write_bytes(b"what was there before")
        kills["file"] += not run(lambda: decode(single, out), fast * moment / MOMENTS)
        assert out.read_bytes() in (b"what was there before", text.read_bytes())
        out.unlink()

    for after in (False, True):
        at_the_rename(lambda: decode(whole, out), after)
        assert out.exists() == after
        target.write_bytes(b"what was there before")
        at_the_rename(lambda: encode(root / "in", target), after)
        assert target.read_bytes() == (whole.read_bytes() if after else b"what was there before")
        encode(root / "in", target, resume=True)
        assert target.read_bytes() == whole.read_bytes()
        assert not partial(target).exists()
    return {**kills, "solid": solid(root)}


def solid(root: Path) -> int:
    """Kill solid encoding at random moments and go on with it, until KILLS have struck; return how many did."""
    text, whole, target = root / "solid", root / "solid.upz", root / "resumed.upz"
    text.write_bytes(b"\n".join(val_documents())[:60_000])

    def job(target: Path) -> None:
        encode_files(find_sources([text]), target, Settings(block=1 << 12), resume=True)

    seconds, generator = timed(lambda: job(whole)), random.Random(0)
    decode(whole, root / "three")
    assert (root / "three").read_bytes() == text.read_bytes()
    struck = 0
    while struck < KILLS:
        done = run(lambda: job(target), generator.uniform(0, seconds / 3))
        struck += not done
        refused(partial(target))
        if target.exists():
            assert target.read_bytes() == whole.read_bytes()
            assert not (done and partial(target).exists())
            partial(target).unlink(missing_ok=True)  # of a job that was killed when all but this was done
            target.unlink()
    return struck


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def refused(path: Path) -> None:
    """A partial file is no archive."""
    if path.exists():
        try:
            codec.decode(pack(), path.read_bytes())
        except CodecError:
            return
        raise AssertionError(f"{path} looks like an archive")


if __name__ == "__main__":
    print(json.dumps(campaign(Path(sys.argv[1]))))
