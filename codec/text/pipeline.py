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
    """Documents, and the records of the scored documents, by number."""

    documents: list[bytes]
    records: dict[int, Future[Record]] = field(default_factory=dict)

    @property
    def done(self) -> bool:
        """Return whether all records are written."""
        return len(self.records) == len(self.documents) and all(future.done() for future in self.records.values())

    def result(self) -> tuple[list[bytes], list[Record]]:
        """Wait for the records; return the documents and their records."""
        return self.documents, [self.records[n].result() for n in range(len(self.documents))]


@dataclass(frozen=True)
class _Part:
    """Documents of a group that are prepared together, by their numbers in the group."""

    group: _Group
    numbers: Sequence[int]
    prepared: Sequence[Future[Prepared]]
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
