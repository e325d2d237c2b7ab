"""Run a Python script with a private root that holds chosen files alone: what the script does without the others."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from threading import Timer

from codec.console import CheckFailed
from eval.audit import isolation
from eval.audit.sandbox import Limits, plan_of
from eval.audit.worker import MAX_TEXT


def run_script(
    files: Mapping[str, Path], words: Sequence[str], take: Callable[[bytes], object], limits: Limits | None = None
) -> None:
    """Run a Python script to its end with a private root, in which `files` lie alone, and no network.

    Args:
        files: what the process sees beside the interpreter and its libraries: a file by its path in the current folder.
        words: the script and its arguments.
        take: told what the script writes to standard output, piece by piece.
        limits: of time and memory; a call is the whole run.

    Raises:
        CheckFailed: the machine cannot isolate a process, and nothing was run; or the script failed, or exceeded a
            limit.
    """
    limits = limits or Limits(call_seconds=Limits.total_seconds)
    with tempfile.TemporaryDirectory(prefix="underpar-script-") as name:
        folder = Path(name)
        for inside, file in files.items():
            copy = folder / "claim" / inside
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)
        (folder / "modules").mkdir()
        (folder / "root").mkdir()
        told, answers = os.pipe()
        with os.fdopen(told, "rb") as pipe, (folder / "log").open("w+b") as log:
            try:
                process = _start(folder, words, limits.memory_bytes, answers, log.fileno())
            finally:
                os.close(answers)
            late = _follow(process, take, limits.call_seconds)
            in_force = json.loads(pipe.read(isolation.HEAD.size + MAX_TEXT)[isolation.HEAD.size :] or "{}")
            if in_force.get("text") != isolation.ROOT:
                raise CheckFailed(f"this machine cannot isolate a process ({in_force.get('reason', 'it was killed')})")
            if late:
                raise CheckFailed(f"{words[0]} took over {limits.call_seconds:g} seconds")
            if process.returncode:
                log.seek(max(0, log.seek(0, os.SEEK_END) - MAX_TEXT))
                lines = log.read().decode(errors="replace").strip().splitlines() or ["it printed nothing"]
                raise CheckFailed(f"{words[0]} ended with status {process.returncode}: {lines[-1]}")


def _start(folder: Path, words: Sequence[str], memory: int, answers: int, log: int) -> "subprocess.Popen[bytes]":
    """Start the script; where a machine cannot isolate it, its process ends at once."""
    plan = plan_of(folder, (), memory, ["-B", *words], answers)
    nothing = {**plan.outside, "command": [plan.command[0], "-S", "-c", "raise SystemExit(1)"]}
    with (folder / "plan").open("w+b") as stdin:
        stdin.write(json.dumps(plan._replace(outside=nothing)._asdict()).encode())
        stdin.seek(0)
        return subprocess.Popen(
            [sys.executable, "-I", "-S", isolation.__file__],
            cwd=folder,
            env={},
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=log,
            pass_fds=(answers,),
            start_new_session=True,
        )


def _follow(process: "subprocess.Popen[bytes]", take: Callable[[bytes], object], seconds: float) -> bool:
    """Take all that a process writes, and end it; tells whether its time was up."""
    late = []

    def end() -> None:
        late.append(True)
        os.killpg(process.pid, signal.SIGKILL)

    clock = Timer(seconds, end)
    clock.start()
    try:
        assert process.stdout
        with process.stdout:
            while piece := os.read(process.stdout.fileno(), 1 << 16):
                take(piece)
        process.wait()
    finally:
        clock.cancel()
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return bool(late)
