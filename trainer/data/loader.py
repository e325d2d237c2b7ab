"""Batches on the device ahead of time: a thread reads and copies the next batch while a step runs."""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainer.data.batches import Batches
from trainer.data.mixture import Mixed

Stream = Batches | Mixed
"""Rows by position."""


@dataclass(frozen=True)
class Copied:
    """Inputs and targets [B, T] on a device, complete once `done` is reached."""

    inputs: Tensor
    targets: Tensor
    done: torch.cuda.Event | None


class Loader:
    """A source of rows by position that prepares the rows after the last request; made by `open_loader`."""

    def __init__(self, streams: Sequence[Stream], device: torch.device, pool: ThreadPoolExecutor):
        self.streams, self.device, self.pool = streams, device, pool
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.ahead: tuple[tuple[Stream, int, int], Future[Copied]] | None = None

    def take(self, first: int, count: int, late: bool = False) -> tuple[Tensor, Tensor]:
        """Return inputs and targets of `Batches.take`, int64 [B, T] on the device, without waiting for a GPU.

        Args:
            first: number of the first row.
            count: rows of all processes.
            late: whether to take rows of the second stream.

        Raises:
            CodecError, MismatchError: as `Batches.take`.
        """
        batches = self.streams[late]
        where, coming = self.ahead if self.ahead else (None, None)
        if coming is None or where != (batches, first, count):
            coming = self.pool.submit(self._copy, batches, first, count)
        following = batches, first + count, count
        self.ahead = following, self.pool.submit(self._copy, *following)
        copied = coming.result()
        if copied.done is not None:
            here = torch.cuda.current_stream(self.device)
            here.wait_event(copied.done)
            for rows in (copied.inputs, copied.targets):
                rows.record_stream(here)  # the memory of the rows belongs to the copying stream
        return copied.inputs, copied.targets

    def _copy(self, batches: Stream, first: int, count: int) -> Copied:
        inputs, targets = batches.take(first, count)
        if self.stream is None:
            return Copied(torch.from_numpy(inputs), torch.from_numpy(targets), None)
        with torch.cuda.stream(self.stream):
            return Copied(to_device(inputs, self.device), to_device(targets, self.device), self.stream.record_event())


@contextmanager
def open_loader(streams: Sequence[Stream], device: torch.device) -> Iterator[Loader]:
    """Open a loader of one or two streams (the second has the late rows); its thread ends with the block."""
    with ThreadPoolExecutor(1, "loader") as pool:
        yield Loader(streams, device, pool)


def to_device(rows: NDArray[np.int64], device: torch.device) -> Tensor:
    """Copy rows [B, T] to the device, without waiting for a GPU."""
    tensor = torch.from_numpy(np.ascontiguousarray(rows))
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor
