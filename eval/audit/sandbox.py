"""Somebody else's predictor in a process of its own: limits on time and memory, no network, no text, plain arrays.

The process starts in an empty folder that holds the files of the claim alone, with an empty home and a bare
environment. `Sandbox.isolation` says what keeps it from the network and from the text: "namespace", the kernel's
network and mount namespaces, or "audit hook" where the kernel grants none: the interpreter refuses sockets and the
text's path, which stops Python but not native code. Either is a guard against mistakes and shortcuts; run the audit
itself in a virtual machine where the code is hostile.
"""

import json
import os
import select
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from codec.errors import CodecError
from codec.processes import source_folder
from eval.audit import worker


class PredictorError(Exception):
    """The predictor died, raised, answered nonsense or exceeded a limit; the message says which."""


@dataclass(frozen=True)
class Limits:
    """What a predictor may use."""

    call_seconds: float = 120.0  # of one answer; the first includes loading the model
    total_seconds: float = 3600.0  # of all answers of a process
    memory_bytes: int = 8 << 30  # of address space


@dataclass(frozen=True)
class Program:
    """A predictor on disk: `factory` is "file.py:name", `files` are its code and all it reads."""

    factory: str
    files: Sequence[Path]
    hidden: Sequence[Path] = ()  # the text


class Sandbox:
    """A running predictor with the methods of `eval.audit.predictor.Predictor`; a context manager.

    Attributes:
        isolation: what is in force for "network" and "text".
        peeks: whether the predictor has `peek`.
    """

    def __init__(self, program: Program, vocabulary: int, limits: Limits | None = None):
        self._limits, self._vocabulary = limits or Limits(), vocabulary
        self._spent = 0.0
        self._rows = 0
        self._owed = 0  # answers to `update`
        self._folder = tempfile.TemporaryDirectory(prefix="underpar-audit-")
        home = Path(self._folder.name) / "claim"
        home.mkdir()
        for file in program.files:
            if (home / file.name).exists():
                raise CodecError(f"claim: two of its files are called {file.name}; rename one")
            shutil.copy(file, home / file.name)
        from_parent, self._requests = os.pipe()
        self._answers, to_parent = os.pipe()
        hidden = json.dumps([str(path.resolve()) for path in program.hidden])
        arguments = [program.factory, str(self._limits.memory_bytes), hidden, str(from_parent), str(to_parent)]
        self._log = (Path(self._folder.name) / "log").open("w+b")
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "eval.audit.worker", *arguments],
            cwd=home,
            env={
                "PATH": os.defpath,
                "HOME": str(home),
                "USER": "audit",
                "LANG": "C.UTF-8",
                "PYTHONPATH": source_folder(),
                "PYTHONHASHSEED": "0",
                "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
                "OPENBLAS_NUM_THREADS": "1",
            },
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            pass_fds=(from_parent, to_parent),
            start_new_session=True,
        )
        os.close(from_parent)
        os.close(to_parent)
        try:
            told = json.loads(self._answer(worker.MAX_TEXT))
            self.isolation = {"network": str(told["network"]), "text": str(told["text"])}
            self.peeks = bool(told["peeks"])
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
        """Its answer is awaited with the next one, so that both processes work at once."""
        self._send(worker.UPDATE, tokens, time.monotonic())
        self._owed += 1

    def distribution(self) -> NDArray[np.float64]:
        """float64 [B, V], as the predictor says it. Raises PredictorError for another shape."""
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
        """End the process and all it started."""
        for end in (self._requests, self._answers):
            os.close(end)
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._log.close()
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
        content = np.ascontiguousarray(numbers, "<i8").tobytes()
        message = memoryview(worker.HEAD.pack(kind, len(content)) + content)
        try:
            while message:
                self._wait(self._requests, select.POLLOUT, begin)
                message = message[os.write(self._requests, message[: select.PIPE_BUF]) :]
        except BrokenPipeError:
            raise PredictorError(self._epitaph()) from None

    def _answer(self, most: int, begin: float | None = None) -> bytes:
        begin = time.monotonic() if begin is None else begin
        status, size = worker.HEAD.unpack(self._read(worker.HEAD.size, begin))
        if status not in (worker.OK, worker.FAILED) or size > max(most, worker.MAX_TEXT):
            raise PredictorError(f"its process answered {size:,} bytes of kind {status!r}, expected at most {most:,}")
        content = self._read(size, begin)
        if not self._owed:
            self._spent += time.monotonic() - begin
        if status == worker.FAILED:
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
        """What is known of a process that has ended."""
        try:
            status: int | str = self._process.wait(5)
        except subprocess.TimeoutExpired:
            status = "unknown"
        self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, self._log.tell() - worker.MAX_TEXT))
        lines = self._log.read().decode(errors="replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "it printed nothing")
        return f"its process ended with status {status}; {last}"
