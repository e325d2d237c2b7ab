"""Share documents out to a Ray cluster: actors that hold a model each, groups of documents as tasks, results in order.

Every document is coded alone, so the bytes are those of one process.
"""

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing

from codec.console import Advance, ignore_progress
from codec.text.base import DocumentCoder
from codec.text.cluster.actor import Actor
from codec.text.cluster.pool import Pool, Task
from codec.text.documents import Record
from codec.text.pipeline import GroupReader
from codec.text.workers import portions


class Cluster:
    """Actors that code documents together, as a `codec.text.base.DocumentCoder`.

    Its methods raise what `codec.text.cluster.pool.Pool.in_order` raises, and what a `codec.text.coder.Coder` raises in
    an actor.

    Args:
        make: makes a coder of the pack from a kind of device and a number of threads.
        devices: cpu or cuda, one for each actor; a single one stands for all processors or GPUs of the cluster.
        address: as of `codec.text.cluster.connection.connect`.
    """

    def __init__(self, make: Callable[[str, int], DocumentCoder], devices: Sequence[str], address: str):
        self._pool = Pool(Actor, make, devices, address)

    def start(self, advance: Advance = ignore_progress) -> None:
        """Connect, and wait for the first actor to be ready; see `codec.text.base.DocumentCoder.start`."""
        with closing(self._pool.in_order(iter([Task("start", ())]), advance)) as answers:
            list(answers)

    def encode(
        self, documents: Sequence[bytes], model_only: bool = False, advance: Advance = ignore_progress
    ) -> list[Record]:
        """Code documents; see `codec.text.coder.Coder.encode`."""
        parts = portions([len(document) for document in documents], self._pool.connect())
        tasks = (Task("encode", ([documents[i] for i in part], model_only)) for part in parts)
        found: dict[int, Record] = {}
        with closing(self._pool.in_order(tasks, advance)) as answers:
            for part, (_, records) in zip(parts, answers, strict=True):
                found.update(zip(part, records, strict=True))
                advance(sum(len(documents[i]) for i in part))
        return [found[i] for i in range(len(documents))]

    def encode_groups(
        self, documents: Iterator[bytes], limit: int, model_only: bool = False, advance: Advance = ignore_progress
    ) -> Generator[tuple[list[bytes], list[Record]], None, None]:
        """Code documents in groups, each a task; see `codec.text.coder.Coder.encode_groups`."""
        ahead = GroupReader(documents, limit)

        def tasks() -> Iterator[Task]:
            while group := ahead.take():
                yield Task("encode", (group, model_only))

        with closing(self._pool.in_order(tasks(), advance)) as answers:
            for task, records in answers:
                group = task.arguments[0]
                advance(sum(map(len, group)))
                yield group, records
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
        parts = portions([len(payload) for payload in payloads.values()], self._pool.connect())
        shares = [{numbers[i]: payloads[numbers[i]] for i in part} for part in parts]
        tasks = (Task("decode", (share, sizes and {n: sizes[n] for n in share})) for share in shares)
        with closing(self._pool.in_order(tasks, advance)) as answers:
            for task, documents in answers:
                yield from documents
                advance(sum(map(len, task.arguments[0].values())))
