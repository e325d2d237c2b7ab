"""Read documents ahead in groups, and keep track of what of them is prepared and coded."""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from codec.text.documents import Prepared, Record


class Ahead:
    """Documents in groups of `limit` bytes, of which the next may be read bit by bit.

    Attributes:
        ended: whether no more can be read.
        failure: why, where reading has failed; what was read of the group is dropped.
    """

    def __init__(self, documents: Iterator[bytes], limit: int):
        self._documents, self._limit, self.ended = documents, limit, False
        self._group: list[bytes] = []
        self._size = 0
        self.failure: Exception | None = None

    def read(self, amount: int) -> None:
        """Read so many bytes more of the next group, or what it lacks."""
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
        """The next group, read to its end; empty behind the last."""
        self.read(self._limit)
        group, self._group, self._size = self._group, [], 0
        return group


@dataclass(eq=False)
class _Group:
    """Documents, and the records of those that have been scored, by their numbers."""

    documents: list[bytes]
    records: dict[int, Future[Record]] = field(default_factory=dict)

    @property
    def done(self) -> bool:
        """Whether all records are written."""
        return len(self.records) == len(self.documents) and all(future.done() for future in self.records.values())

    def result(self) -> tuple[list[bytes], list[Record]]:
        """The documents and their records; waits for them."""
        return self.documents, [self.records[n].result() for n in range(len(self.documents))]


@dataclass(frozen=True)
class _Part:
    """Documents of a group, by their numbers, that are prepared together."""

    group: _Group
    numbers: Sequence[int]
    prepared: Sequence[Future[Prepared]]
    last: bool = False  # whether nothing follows


def groups(documents: Iterator[bytes], limit: int) -> Iterator[list[bytes]]:
    """`documents` in lists that end as soon as they have `limit` bytes."""
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
