"""The part of a cluster's coder that runs on its nodes: a process with a model of its own."""

import os
from collections.abc import Callable, Mapping, Sequence

from codec import console
from codec.cache import source_hash
from codec.errors import CodecError
from codec.text.base import DocumentCoder
from codec.text.cluster.pool import Answer
from codec.text.documents import Record


class Actor:
    """A coder of documents on one device, as a Ray actor.

    Args:
        make: makes the coder of a kind of device and a number of threads (`codec.text.open_coder.make_coder`).
        kind: cpu or cuda, of which Ray makes one GPU visible.
        threads: of the processor.
    """

    def __init__(self, make: Callable[[str, int], DocumentCoder], kind: str, threads: int):
        console.notes.quiet = True  # all would say the same
        os.environ["OMP_NUM_THREADS"] = str(threads)
        self._coder = make(kind, threads)

    def start(self) -> Answer[str]:
        """Get ready; return the hash of the sources, which must be those of the process that asks."""
        try:
            self._coder.start()
        except CodecError as error:
            return None, error
        return source_hash(), None

    def encode(self, documents: Sequence[bytes], model_only: bool) -> Answer[list[Record]]:
        """Code documents; see `codec.text.coder.Coder.encode`."""
        try:
            return self._coder.encode(documents, model_only), None
        except CodecError as error:
            return None, error

    def decode(self, payloads: Mapping[int, bytes], sizes: Mapping[int, int] | None) -> Answer[list[tuple[int, bytes]]]:
        """Decode records; see `codec.text.coder.Coder.decode`."""
        try:
            return list(self._coder.decode(payloads, sizes=sizes)), None
        except CodecError as error:
            return None, error
