"""Read documents ahead in groups, and keep track of which documents are prepared and coded."""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from codec.text.documents import Prepared, Record


class GroupReader:
    """A reader of groups of documents: a group ends at `limit` bytes, and the next group can be read bit by bit.

    Attributes:
        ended: whether there is nothing more to read.
        failure: the error, where reading has failed; the documents read of an unfinished group are dropped.
    """

    def __init__(self, documents: Iterator[bytes], limit: int):
        self._documents, self._limit, self.ended = documents, limit, False
        self._group: list[bytes] = []
        self._size = 0
        self.failure: Exception | None = None

    def read(self, amount: int) -> None:
        """Read `amount` bytes more of the next group, or as many as the group still lacks."""
        goal = min(self._size + amount, self._limit)
        while self._size < goal and not self.ended:
            try:
                document = next(self._documents)
            except StopIteration:
                self.ended = True
            except Exception as error:
                self.failure, self.ended, self._group = error, True, []
            else:
                self._group.append(document)
                self._size += len(document)

    def take(self) -> list[bytes]:
        """Return the next group, read to its end; an empty list behind the last group."""
        self.read(self._limit)
        group, self._group, self._size = self._group, [], 0
        return group


@dataclass(eq=False)
class _Group:
    """Documents, and the records of those that have been scored."""

    documents: list[bytes]
    tasks: list[tuple[Sequence[int], Future[list[Record]]]] = field(default_factory=list)  # numbers and their records
    scored: int = 0  # documents

    def add(self, numbers: Sequence[int], records: Future[list[Record]]) -> None:
        """Add a task that writes the records of the documents `numbers`."""
        self.tasks.append((numbers, records))
        self.scored += len(numbers)

    @property
    def done(self) -> bool:
        """Return whether all records are written."""
        return self.scored == len(self.documents) and all(future.done() for _, future in self.tasks)

    def result(self) -> tuple[list[bytes], list[Record]]:
        """Wait for the records; return the documents and their records."""
        found = {
            n: record for numbers, future in self.tasks for n, record in zip(numbers, future.result(), strict=True)
        }
        return self.documents, [found[n] for n in range(len(self.documents))]


@dataclass(frozen=True)
class _Part:
    """Documents of a group that are prepared together, by their numbers in the group."""

    group: _Group
    numbers: Sequence[int]
    prepared: Sequence[Future[list[Prepared]]]  # of the documents in order, some in each task
    last: bool = False  # whether nothing follows


def groups(documents: Iterator[bytes], limit: int) -> Iterator[list[bytes]]:
    """Yield `documents` in lists; a list ends as soon as it has `limit` bytes."""
    group: list[bytes] = []
    size = 0
    for document in documents:
        group.append(document)
        size += len(document)
        if size >= limit:
            yield group
            group, size = [], 0
    if group:
        yield group
