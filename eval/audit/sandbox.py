"""Run a claim's predictor in a process of its own: limits on time and memory, no network, no text, plain arrays.

The process has a private root (`eval.audit.isolation`). Of the machine's files the process sees the interpreter with
its libraries, the files of the claim and the few modules of this project that a predictor may import, all read-only,
and a fresh `/tmp`. The process sees no other process, shared memory, network or device, and has no capability.

`Sandbox.isolation` names the means that keep the predictor from the network and from the text: "namespace" and "private
root", or "audit hook" where the kernel grants no namespaces. With an audit hook only the interpreter refuses sockets
and the text's path. Native code is not stopped, so an audit does not state that the predictor was without the text.
"""

import json
import os
import select
import shutil
import signal
import struct
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from codec.errors import CodecError
from eval.audit import isolation, worker
from eval.imports import PACKAGES, ROOT, modules

LIBRARIES = ("/lib", "/lib32", "/lib64", "/usr/lib", "/usr/lib32", "/usr/lib64", "/usr/local/lib", "/nix/store")
"""Folders that may hold an interpreter's shared libraries."""

VISIBLE = ("eval.audit.worker", "eval.audit.isolation", "eval.audit.predictor", "eval.audit.challenge_predictor")
"""Modules of this project that a predictor's process sees, with the modules that they import."""


class PredictorError(Exception):
    """The predictor died, raised, answered nonsense or exceeded a limit; the message names the failure."""


@dataclass(frozen=True)
class Limits:
    """Time and memory that a predictor may use."""

    call_seconds: float = 120.0  # of one answer; the first includes loading the model
    total_seconds: float = 3600.0  # of all answers of a process
    memory_bytes: int = 8 << 30  # of address space


@dataclass(frozen=True)
class Program:
    """A predictor on disk: `factory` is "file.py:name", `files` are its code and all files that it reads."""

    factory: str
    files: Sequence[Path]
    hidden: Sequence[Path] = ()  # the text


class Sandbox:
    """A running predictor with the methods of `eval.audit.predictor.Predictor`; a context manager.

    Attributes:
        isolation: the means in force for "network" and "text".
        peeks: whether the predictor has `peek`.
    """

    def __init__(self, program: Program, vocabulary: int, limits: Limits | None = None):
        self._limits, self._vocabulary = limits or Limits(), vocabulary
        self._spent = 0.0
        self._rows = 0
        self._owed = 0  # answers to `update` that have not been read
        self._folder = tempfile.TemporaryDirectory(prefix="underpar-audit-")
        folder = Path(self._folder.name)
        _copy_claim(program, folder / "claim")
        _copy_modules(folder / "modules")
        (folder / "root").mkdir()
        from_parent, self._requests = os.pipe()
        self._answers, to_parent = os.pipe()
        words = ["-P", "-m", "eval.audit.worker", str(from_parent), str(to_parent)]
        plan = plan_of(folder, program.hidden, self._limits.memory_bytes, words, to_parent)
        with (folder / "plan").open("w+b") as stdin, (folder / "log").open("ab") as log:
            stdin.write(json.dumps(plan._asdict()).encode())
            stdin.seek(0)
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", isolation.__file__],
                cwd=folder,
                env={},
                stdin=stdin,
                stdout=log,
                stderr=log,
                pass_fds=(from_parent, to_parent),
                start_new_session=True,
            )
        os.close(from_parent)
        os.close(to_parent)
        hidden = [str(path.resolve()) for path in program.hidden]
        try:
            begin = time.monotonic()
            in_force = json.loads(self._answer(worker.MAX_TEXT, begin))
            self.isolation = {name: str(in_force[name]) for name in ("network", "text")}
            self.isolation |= {"reason": str(in_force["reason"])} if "reason" in in_force else {}
            isolated = self.isolation["text"] == isolation.ROOT
            start = {"factory": program.factory, "hidden": [] if isolated else hidden}
            self._write(worker.START, json.dumps(start).encode(), begin)
            self.peeks = bool(json.loads(self._answer(worker.MAX_TEXT, begin))["peeks"])
        except (ValueError, KeyError, TypeError) as error:
            self.close()
            raise PredictorError(f"its process said nothing sensible at the start ({error!r})") from error
        except BaseException:
            self.close()
            raise

    def reset(self, documents: NDArray[np.int64]) -> None:
        self._rows = len(documents)
        self._ask(worker.RESET, documents)

    def peek(self, documents: Sequence[NDArray[np.int64]]) -> None:
        lengths = [len(document) for document in documents]
        self._ask(worker.PEEK, np.concatenate([[len(documents)], lengths, *documents]))

    def update(self, tokens: NDArray[np.int64]) -> None:
        """Send tokens without waiting: the answer is read with the next answer, so that both processes work at once."""
        self._send(worker.UPDATE, tokens, time.monotonic())
        self._owed += 1

    def distribution(self) -> NDArray[np.float64]:
        """Return the predictor's answer, float64 [B, V]. Raises PredictorError for another shape."""
        size = 8 * self._rows * self._vocabulary
        answer = self._ask(worker.DISTRIBUTION, np.empty(0, np.int64), 8 + size)
        shape = struct.unpack_from("<II", answer) if len(answer) >= 8 else ()
        if shape != (self._rows, self._vocabulary) or len(answer) != 8 + size:
            raise PredictorError(
                f"distribution() has shape {list(shape)}, expected [{self._rows}, {self._vocabulary}]: "
                "the whole vocabulary for every document"
            )
        return np.frombuffer(answer, "<f8", offset=8).reshape(shape)

    def close(self) -> None:
        """End the process and all processes that it started."""
        for end in (self._requests, self._answers):
            os.close(end)
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._folder.cleanup()

    def __enter__(self) -> "Sandbox":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _ask(self, kind: bytes, numbers: NDArray[np.int64], most: int = worker.MAX_TEXT) -> bytes:
        begin = time.monotonic()
        self._send(kind, numbers, begin)
        while self._owed:
            self._owed -= 1
            self._answer(worker.MAX_TEXT, begin)
        return self._answer(most, begin)

    def _send(self, kind: bytes, numbers: NDArray[np.int64], begin: float) -> None:
        self._write(kind, np.ascontiguousarray(numbers, "<i8").tobytes(), begin)

    def _write(self, kind: bytes, content: bytes, begin: float) -> None:
        message = memoryview(isolation.HEAD.pack(kind, len(content)) + content)
        try:
            while message:
                self._wait(self._requests, select.POLLOUT, begin)
                message = message[os.write(self._requests, message[: select.PIPE_BUF]) :]
        except BrokenPipeError:
            raise PredictorError(self._epitaph()) from None

    def _answer(self, most: int, begin: float | None = None) -> bytes:
        begin = time.monotonic() if begin is None else begin
        status, size = isolation.HEAD.unpack(self._read(isolation.HEAD.size, begin))
        if status not in (isolation.OK, isolation.FAILED) or size > max(most, worker.MAX_TEXT):
            raise PredictorError(f"its process answered {size:,} bytes of kind {status!r}, expected at most {most:,}")
        content = self._read(size, begin)
        if not self._owed:
            self._spent += time.monotonic() - begin
        if status == isolation.FAILED:
            raise PredictorError(content.decode(errors="replace"))
        return content

    def _read(self, size: int, begin: float) -> bytes:
        content = bytearray()
        while len(content) < size:
            self._wait(self._answers, select.POLLIN, begin)
            part = os.read(self._answers, min(size - len(content), 1 << 20))
            if not part:
                raise PredictorError(self._epitaph())
            content += part
        return bytes(content)

    def _wait(self, end: int, event: int, begin: float) -> None:
        used = time.monotonic() - begin
        left = min(self._limits.call_seconds - used, self._limits.total_seconds - self._spent - used)
        poller = select.poll()
        poller.register(end, event)
        if left <= 0 or not poller.poll(1000 * left):
            total = self._limits.total_seconds - self._spent <= self._limits.call_seconds
            what = (
                f"{self._limits.total_seconds:g} seconds in all" if total else f"{self._limits.call_seconds:g} a call"
            )
            raise PredictorError(f"it used up its time, {what}")

    def _epitaph(self) -> str:
        """Describe how the process ended."""
        try:
            status: int | str = self._process.wait(5)
        except subprocess.TimeoutExpired:
            status = "unknown"
        with (Path(self._folder.name) / "log").open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - worker.MAX_TEXT))
            lines = log.read().decode(errors="replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "it printed nothing")
        return f"its process ended with status {status}; {last}"


def _copy_claim(program: Program, folder: Path) -> None:
    """Copy the bytes and names of a claim's files, but neither modes nor times."""
    folder.mkdir()
    for file in sorted(program.files, key=lambda file: file.name):
        copy = folder / file.name
        if copy.exists():
            raise CodecError(f"claim: two of its files are called {file.name}; rename one")
        shutil.copyfile(file, copy)
        copy.chmod(0o644)
        os.utime(copy, (0, 0))


@cache
def _visible_modules() -> dict[str, bytes]:
    """Read the source of each module in `VISIBLE` and of the modules that it imports, by path."""
    return {path.relative_to(ROOT).as_posix(): path.read_bytes() for path in modules(VISIBLE).values()}


def _copy_modules(folder: Path) -> None:
    for name, source in _visible_modules().items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(source)


def plan_of(folder: Path, hidden: Sequence[Path], memory: int, words: Sequence[str], answers: int) -> isolation.Plan:
    """Plan the isolation of Python with arguments `words`, which sees itself and the copies in `folder`, nothing else.

    `claim` and `modules` of `folder` are what the process sees; `answers` is the descriptor of `isolation.Plan`.

    Raises:
        CodecError: this system is not Linux.
    """
    if sys.platform != "linux":
        raise CodecError(f"the sandbox needs namespaces of Linux; this is {sys.platform}: run the command on Linux")
    packages = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    python = os.path.realpath(getattr(sys, "_base_executable", sys.executable))
    standard = [sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"), f"{sys.base_prefix}/lib"]
    names = [path for path in (*LIBRARIES, *standard, *packages) if Path(path).is_dir()]
    folders = sorted({os.path.realpath(name) for name in names})
    roots = [path for path in folders if not any(path != other and _inside(path, other) for other in folders)]
    files = [path for path in (python, "/etc/ld.so.cache") if Path(path).is_file()]
    installed = os.path.realpath(ROOT) in map(os.path.realpath, packages)  # among the packages that the process needs
    ours = [ROOT / name for name in PACKAGES] if installed else [ROOT]
    covered = {os.path.realpath(path) for path in (*ours, *hidden)}

    def environment(home: str, modules_folder: str) -> dict[str, str]:
        return {
            "PATH": os.defpath,
            "HOME": home,
            "TMPDIR": home,
            "USER": "audit",
            "LANG": "C.UTF-8",
            "PYTHONPATH": os.pathsep.join([modules_folder, *map(os.path.realpath, packages)]),
            "PYTHONHASHSEED": "0",
            "PYTHONDONTWRITEBYTECODE": "1",
            "LD_LIBRARY_PATH": f"{sys.base_prefix}/lib",
            "NUMBA_CACHE_DIR": home,
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
            "OPENBLAS_NUM_THREADS": "1",
        }

    command = [python, "-S", *words]
    (folder / "tmp").mkdir()
    return isolation.Plan(
        root=str(folder / "root"),
        seen=[[path, path] for path in (*roots, *files)]
        + [[str(folder / "claim"), "/claim"], [str(folder / "modules"), "/modules"]],
        links=[[name, os.path.realpath(name)] for name in names if Path(name).is_symlink()],
        covered=[path for path in sorted(covered) if any(_inside(path, root) for root in roots)],
        memory=memory,
        command=command,
        environment=environment("/tmp", "/modules"),
        outside={
            "command": command,
            "environment": environment(str(folder / "tmp"), str(folder / "modules")),
            "folder": str(folder / "claim"),
        },
        answers=answers,
    )


def _inside(path: str, folder: str) -> bool:
    """Check that `path` is `folder` or below it."""
    return path == folder or path.startswith(folder.rstrip("/") + "/")
