"""Run tasks on the actors of a Ray cluster: bounded, in order, and again where an actor dies.

The arguments of actors are put into the cluster's object store once. Only so many tasks are on their way that every
actor has one to do and one that waits (back-pressure). Where an actor dies, alone or with its node, its tasks are done
again by another, and a new actor takes its place. A node that is added is used as soon as it is seen.
"""

import atexit
import time
import weakref
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from codec.cache import source_hash
from codec.console import Advance
from codec.devices import kind_of
from codec.errors import CodecError, MismatchError, WorkerError
from codec.text.cluster.connection import connect, import_ray

T = TypeVar("T")
Answer = tuple[T | None, CodecError | None]
"""Results of requests, or errors in their place: a raised error would come back with Ray's traceback around it."""

_POLL_SECONDS = 0.2  # after which a caller without news may look for an interrupt
_LOOK_SECONDS = 5.0  # between two looks at how many nodes there are
_EACH = 2  # tasks of an actor: one that it does, and one that waits
_MOST_DEATHS = 3  # of actors on one task, or in a row before they are ready; more are no accident


class Startable(Protocol):
    """The interface of actors; all other methods return an `Answer`, too."""

    def start(self) -> Answer[str]:
        """Get ready; return `codec.cache.source_hash`, which must be that of the process that asks."""


@dataclass
class Task:
    """A request to any actor."""

    method: str
    arguments: tuple[Any, ...]
    number: int = 0
    deaths: int = 0  # of actors that were at it


class Pool:
    """Actors on a cluster, which is connected when they are first needed.

    Args:
        actor: makes an actor of `stored`, the kind of its device, and its number of threads.
        stored: what goes to all actors, through the object store.
        devices: cpu or cuda, one for each actor; a single one stands for all processors or GPUs of the cluster.
        address: as of `codec.text.cluster.connection.connect`.
    """

    def __init__(self, actor: Callable[[Any, str, int], Startable], stored: Any, devices: Sequence[str], address: str):
        self._actor, self._content, self._devices, self._address = actor, stored, devices, address
        self._kind = kind_of(devices[0])
        self._actors: dict[Any, bool] = {}  # whether they are ready
        self._stored: Any = None  # the content, once the cluster is connected
        self._looked = -_LOOK_SECONDS
        self._wanted = self._failed_starts = 0
        self._threads = 1

    def connect(self) -> int:
        """Connect at the first call, and let actors start; return how many there are to be. Raises as `in_order`."""
        if self._stored is None:
            disconnect = connect(self._address, len(self._devices))
            # Where Python ends first, this comes before Ray's own end, in whose middle it would fail.
            atexit.register(weakref.finalize(self, _end, self._actors, disconnect))
            self._stored = import_ray().put(self._content)
        self._look()
        return self._wanted

    def _look(self) -> None:
        """Look from time to time how many devices there are; start actors that lack. Raises CodecError for none."""
        if time.monotonic() - self._looked >= _LOOK_SECONDS:
            self._looked = time.monotonic()
            resources = import_ray().cluster_resources()
            name = {"cpu": "CPU", "cuda": "GPU"}[self._kind]
            self._wanted = len(self._devices) if len(self._devices) > 1 else int(resources.get(name, 0))
            if not self._wanted:
                raise CodecError(f"Ray cluster {self._address!r}: it has no {name}; pass another --device")
            self._threads = 1 if self._kind == "cpu" else max(1, int(resources.get("CPU", 1) / self._wanted))
        while len(self._actors) < self._wanted:
            resource = {"num_cpus": 1} if self._kind == "cpu" else {"num_cpus": 0, "num_gpus": 1}
            remote = import_ray().remote(self._actor).options(max_restarts=0, **resource)
            self._actors[remote.remote(self._stored, self._kind, self._threads)] = False

    def in_order(self, tasks: Iterator[Task], advance: Advance) -> Generator[tuple[Task, Any], None, None]:
        """Give actors tasks, and yield (task, answer) in the tasks' order.

        Actors that are in the middle of a task when this generator ends, for whatever reason, are killed.

        Raises:
            WorkerError: actors die again and again, or fail.
            MismatchError: a node has another version of the code.
            CodecError: the cluster cannot be used, or what an actor answers.
        """
        self.connect()
        ray = import_ray()
        running: dict[Any, tuple[Any, Task | None]] = {}  # actor and task by what Ray calls the answer; no task: start
        running.update({actor.start.remote(): (actor, None) for actor, ready in self._actors.items() if not ready})
        waiting: deque[Task] = deque()
        done: dict[int, tuple[Task, Any]] = {}
        taken = given = 0
        try:
            while True:
                while taken - given < _EACH * self._wanted and (task := next(tasks, None)):
                    task.number, taken = taken, taken + 1
                    waiting.append(task)
                if taken == given:
                    return
                self._assign(waiting, running)
                found, _ = ray.wait(list(running), timeout=_POLL_SECONDS)
                advance(0)
                for answer in found:
                    actor, task = running.pop(answer)
                    try:
                        result = self._answer(ray, answer)
                    except _Lost as lost:
                        self._lose(actor, task, waiting, lost)
                        continue
                    if task is None:
                        self._check_version(result)
                        self._actors[actor], self._failed_starts = True, 0
                    else:
                        done[task.number] = task, result
                if time.monotonic() - self._looked >= _LOOK_SECONDS or len(self._actors) < self._wanted:
                    known = set(self._actors)
                    self._look()
                    running.update({a.start.remote(): (a, None) for a in self._actors if a not in known})
                while given in done:
                    yield done.pop(given)
                    given += 1
        finally:
            for actor in {actor for actor, task in running.values() if task is not None}:
                self._kill(actor)

    def _assign(self, waiting: deque[Task], running: dict[Any, tuple[Any, Task | None]]) -> None:
        """Give each ready actor up to _EACH tasks, those with the fewest first. Raises CodecError for a full store."""
        loads = Counter({actor: 0 for actor, ready in self._actors.items() if ready})
        loads.update(actor for actor, task in running.values() if actor in loads)
        while waiting and loads:
            actor, load = min(loads.items(), key=lambda item: item[1])
            if load >= _EACH:
                return
            task = waiting[0]
            try:
                running[getattr(actor, task.method).remote(*task.arguments)] = actor, task
            except import_ray().exceptions.ObjectStoreFullError as error:
                raise _full(error) from error
            waiting.popleft()
            loads[actor] += 1

    def _answer(self, ray: Any, answer: Any) -> Any:
        """Return the answer of an actor, or raise the error that it sent in place of it.

        Raises:
            _Lost: the actor, its node or the answer is gone.
            WorkerError: the actor failed for another reason than its input.
            CodecError: what went wrong in the actor, or the object store is full.
        """
        known = ray.exceptions
        try:
            result, error = ray.get(answer)
        except (known.ObjectStoreFullError, known.OutOfDiskError) as error:
            raise _full(error) from error
        except known.RayTaskError as error:
            if "No module named" in str(error):
                raise _not_importable(str(error)) from error
            last = str(error).strip().splitlines()[-1]
            raise WorkerError(f"an actor of the cluster failed: {last}") from error
        except known.RayError as error:
            if "ModuleNotFoundError" in str(error) or "No module named" in str(error):
                raise _not_importable(str(error)) from error
            raise _Lost(str(error)) from error
        if error is not None:
            raise error
        return result

    def _lose(self, actor: Any, task: Task | None, waiting: deque[Task], lost: Exception) -> None:
        """Drop an actor that died; its task is done again, and first. Raises WorkerError after too many deaths."""
        self._kill(actor)
        if task is None:
            self._failed_starts += 1
        else:
            task.deaths += 1
            waiting.appendleft(task)
        if max(self._failed_starts, task.deaths if task else 0) > _MOST_DEATHS:
            what = "before they were ready" if task is None else "on the same documents"
            why = str(lost).strip().partition("\n")[0]
            raise WorkerError(f"{_MOST_DEATHS + 1} actors of the cluster died {what}; the last one: {why}")

    def _kill(self, actor: Any) -> None:
        """End an actor, and forget it."""
        if self._actors.pop(actor, None) is not None:
            import_ray().kill(actor, no_restart=True)

    def _check_version(self, theirs: str) -> None:
        if theirs != source_hash():
            raise MismatchError(
                f"Ray cluster {self._address!r}: a node has another underpar (sources {theirs[:12]}, here "
                f"{source_hash()[:12]}), which may code other bytes; install the same version on all nodes"
            )


class _Lost(Exception):
    """An actor, its node or an answer is gone."""


def _full(error: Exception) -> CodecError:
    first = str(error).strip().partition("\n")[0]
    return CodecError(f"Ray's object store or its disk is full ({first}); start nodes with more --object-store-memory")


def _not_importable(why: str) -> CodecError:
    found = next(line for line in why.splitlines() if "No module named" in line or "ModuleNotFoundError" in line)
    return CodecError(
        f"Ray's nodes cannot import underpar ({found.strip()}); install this version of it, and what it needs, on all"
    )


def _end(actors: dict[Any, bool], disconnect: Callable[[], None]) -> None:
    """End all actors and the connection."""
    ray = import_ray()
    if ray.is_initialized():
        for actor in actors:
            ray.kill(actor, no_restart=True)
        disconnect()
