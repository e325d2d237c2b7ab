"""Share documents out to processes, each with a device of its own (`codec.text.worker` is the code of such a process).

Every document is coded alone, so the bytes are those of one process. Workers start when there is work for them. They
end with their coder, on any error and on an interrupt; if this process is killed, they end by themselves.
"""

import heapq
import signal
import subprocess
import sys
import weakref
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from typing import Any

from codec.console import Advance, ignore_progress
from codec.devices import kind_of, processors, visible_gpus
from codec.errors import WorkerError
from codec.pack.reader import Pack
from codec.processes import child_environment
from codec.startup import starting
from codec.text.documents import Record
from codec.text.pipeline import GroupReader
from codec.text.policy import Policy

Requests = Mapping[int, tuple[Any, ...]]
"""A request for each worker, by the worker's number; see `codec.text.worker`."""

_POLL_SECONDS = 0.2  # after which a caller without news may look for an interrupt


class Workers:
    """Processes that code documents together, as a `codec.text.base.DocumentCoder`.

    Its methods raise WorkerError where a process dies, and what a `codec.text.coder.Coder` raises in one of the
    processes.

    Args:
        pack: sent to every process.
        policy: sent to every process.
        devices: one for each process, as of `codec.devices.find_devices`.
    """

    def __init__(self, pack: Pack, policy: Policy, devices: Sequence[str]):
        self._pack, self._policy, self._devices = pack, policy, devices
        self._idle: dict[int, _Worker] = {}
        weakref.finalize(self, _stop, self._idle)

    def start(self, advance: Advance = ignore_progress) -> None:
        """Start all processes, and make them ready; see `codec.text.base.DocumentCoder.start`."""
        requests = dict.fromkeys(range(len(self._devices)), ("start", (), None))
        with closing(self._answers(requests, advance)) as answers:
            list(answers)

    def encode(
        self, documents: Sequence[bytes], model_only: bool = False, advance: Advance = ignore_progress
    ) -> list[Record]:
        """Code documents; see `codec.text.coder.Coder.encode`."""
        parts = portions([len(document) for document in documents], len(self._devices))
        requests = {n: ("encode", [documents[i] for i in part], model_only) for n, part in enumerate(parts)}
        found: dict[int, Record] = {}
        with closing(self._answers(requests, advance)) as answers:
            for n, records in answers:
                found.update(zip(parts[n], records, strict=True))
        return [found[i] for i in range(len(documents))]

    def encode_groups(
        self, documents: Iterator[bytes], limit: int, model_only: bool = False, advance: Advance = ignore_progress
    ) -> Generator[tuple[list[bytes], list[Record]], None, None]:
        """Code documents in groups; see `codec.text.coder.Coder.encode_groups`. A group waits for the one before it."""
        ahead = GroupReader(documents, limit)
        while group := ahead.take():
            yield group, self.encode(group, model_only, advance)
        if ahead.failure:
            raise ahead.failure

    def decode(
        self,
        payloads: Mapping[int, bytes],
        advance: Advance = ignore_progress,
        sizes: Mapping[int, int] | None = None,
    ) -> Iterator[tuple[int, bytes]]:
        """Decode records; see `codec.text.coder.Coder.decode`."""
        numbers = list(payloads)
        parts = portions([len(payload) for payload in payloads.values()], len(self._devices))
        shares = [{numbers[i]: payloads[numbers[i]] for i in part} for part in parts]
        requests = {
            n: ("decode", share, sizes and {number: sizes[number] for number in share})
            for n, share in enumerate(shares)
        }
        with closing(self._answers(requests, advance)) as answers:
            for _, document in answers:
                yield document

    def _answers(self, requests: Requests, advance: Advance) -> Generator[tuple[int, Any], None, None]:
        """Send each worker a request; yield (worker, answer) as answers come.

        Workers that are in the middle of a request when this generator ends, for whatever reason, are stopped.
        """
        team: dict[int, _Worker] = {}
        try:
            team.update((n, self._idle.pop(n)) for n in requests if n in self._idle)
            new = [n for n in requests if n not in team]
            team.update((n, _Worker(f"worker {n} ({self._devices[n]})", self._devices[n])) for n in new)
            threads = max(1, processors() // len(self._devices))
            opening = {n: (self._pack, self._policy, kind_of(self._devices[n]), threads, n == 0) for n in new}
            with starting():
                yield from _exchange(team, opening, advance)
            yield from _exchange(team, requests, advance)
        except BaseException:
            _stop(team)
            raise
        _stop({n: worker for n, worker in team.items() if self._idle.setdefault(n, worker) is not worker})


class _Worker:
    """A process, and the connection to it."""

    def __init__(self, name: str, device: str):
        self.name = name
        self.connection, theirs = Pipe()
        environment = child_environment()
        if device != "cpu":
            environment["CUDA_VISIBLE_DEVICES"] = visible_gpus()[int(device.partition(":")[2])]
        command = [sys.executable, "-m", "codec.text.worker", str(theirs.fileno())]
        with theirs:  # in a session of its own it does not see a Ctrl-C, which ends it from here, without a traceback
            self._process = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )

    def send(self, request: tuple[Any, ...]) -> None:
        """Send a request. Raises WorkerError if the process has ended."""
        try:
            self.connection.send(request)
        except OSError as error:
            raise self._died() from error

    def receive(self) -> tuple[str, Any]:
        """Return the kind of the next answer, and the answer. Raises WorkerError if the process has ended or failed."""
        try:
            kind, answer = self.connection.recv()
        except (EOFError, OSError) as error:
            raise self._died() from error
        if kind == "failed":
            failure = WorkerError(f"{self.name} failed: {answer[0]}")
            failure.add_note(answer[1])
            raise failure
        return kind, answer

    def _died(self) -> WorkerError:
        status = self._process.wait()
        how = f"status {status}" if status >= 0 else signal.Signals(-status).name
        return WorkerError(f"{self.name} ended with {how} before its documents were done; what it said is above")

    def stop(self) -> None:
        """End the process, whatever it does."""
        self.connection.close()
        self._process.kill()
        self._process.wait()


def _stop(team: dict[int, _Worker]) -> None:
    while team:
        team.popitem()[1].stop()


def _exchange(team: Mapping[int, _Worker], requests: Requests, advance: Advance) -> Iterator[tuple[int, Any]]:
    """Send workers their requests; yield (worker, answer) until all requests are done.

    Raises:
        WorkerError: a process has ended or failed.
        CodecError: what went wrong in one of them.
    """
    for n, request in requests.items():
        team[n].send(request)
    busy = {team[n].connection: n for n in requests}
    while busy:
        ready = wait(list(busy), _POLL_SECONDS)
        if not ready:
            advance(0)
        for connection in ready:
            assert isinstance(connection, Connection)
            kind, answer = team[busy[connection]].receive()
            if kind == "error":
                raise answer
            if kind == "advance":
                advance(answer)
            elif kind == "done":
                del busy[connection]
            else:
                yield busy[connection], answer


def portions(sizes: Sequence[int], count: int) -> list[list[int]]:
    """Distribute items over at most `count` lists of about the same sum of sizes, none empty; return indices.

    The longest item goes first, to the list with the least sum.

    >>> portions([1, 5, 3, 4], 2)
    [[1, 0], [3, 2]]
    """
    loads = [(0, n) for n in range(min(count, len(sizes)))]
    found: list[list[int]] = [[] for _ in loads]
    for i in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        load, n = loads[0]
        found[n].append(i)
        heapq.heapreplace(loads, (load + sizes[i] + 1, n))  # an empty document is some work, too
    return found
