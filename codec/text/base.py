"""Say what codes documents: one device here, or several in processes of their own."""

from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import Protocol

from codec.console import Advance, ignore_progress
from codec.text.documents import Record


class DocumentCoder(Protocol):
    """Who codes documents: a `Coder` here, or `codec.text.workers.Workers` on several devices, to the same bytes."""

    def start(self, advance: Advance = ignore_progress) -> None:
        """Compile and compare what the first document would wait for; `advance` is told of nothing, now and then."""

    def encode(
        self, documents: Sequence[bytes], model_only: bool = False, advance: Advance = ignore_progress
    ) -> list[Record]:
        """See `Coder`."""

    def encode_groups(
        self, documents: Iterator[bytes], limit: int, model_only: bool = False, advance: Advance = ignore_progress
    ) -> Generator[tuple[list[bytes], list[Record]], None, None]:
        """See `Coder`."""

    def decode(
        self,
        payloads: Mapping[int, bytes],
        advance: Advance = ignore_progress,
        sizes: Mapping[int, int] | None = None,
    ) -> Iterator[tuple[int, bytes]]:
        """See `Coder`."""
