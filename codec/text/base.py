"""Define the interface of document coders, on one device here, on several in processes, or on a cluster."""

from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import Protocol

from codec.console import Advance, ignore_progress
from codec.text.documents import Record


class DocumentCoder(Protocol):
    """The interface of document coders: `codec.text.coder.Coder`, `codec.text.workers.Workers` with
    processes, or `codec.text.cluster.coder.Cluster` with the actors of a Ray cluster.

    All write the same bytes.
    """

    def start(self, advance: Advance = ignore_progress) -> None:
        """Do ahead what the first document would wait for: compile, and compare a backend with the reference.

        `advance` is called with 0 now and then, so that a caller can notice an interrupt.
        """

    def encode(
        self, documents: Sequence[bytes], model_only: bool = False, advance: Advance = ignore_progress
    ) -> list[Record]:
        """Code documents; see `codec.text.coder.Coder.encode`."""

    def encode_groups(
        self, documents: Iterator[bytes], limit: int, model_only: bool = False, advance: Advance = ignore_progress
    ) -> Generator[tuple[list[bytes], list[Record]], None, None]:
        """Code documents in groups; see `codec.text.coder.Coder.encode_groups`."""

    def decode(
        self,
        payloads: Mapping[int, bytes],
        advance: Advance = ignore_progress,
        sizes: Mapping[int, int] | None = None,
    ) -> Iterator[tuple[int, bytes]]:
        """Decode records; see `codec.text.coder.Coder.decode`."""
