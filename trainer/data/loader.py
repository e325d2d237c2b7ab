"""Batches on the device before they are asked for: a thread reads and copies the next one while a step runs."""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainer.data.batches import Batches


@dataclass(frozen=True)
class Copied:
    """Inputs and targets [B, T] on a device, there once `done` is reached."""

    inputs: Tensor
    targets: Tensor
    done: torch.cuda.Event | None


class Loader:
    """Hands out rows by position; those after the last asked for are already under way. See `open_loader`."""

    def __init__(self, streams: Sequence[Batches], device: torch.device, pool: ThreadPoolExecutor):
        self.streams, self.device, self.pool = streams, device, pool
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.ahead: tuple[tuple[Batches, int, int], Future[Copied]] | None = None

    def take(self, first: int, count: int, late: bool = False) -> tuple[Tensor, Tensor]:
        """Inputs and targets as `Batches.take` gives them, int64 [B, T] on the device. Waits for no GPU.

        Args:
            late: take rows of the second of the streams.

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
                rows.record_stream(here)  # its memory belongs to the copying stream
        return copied.inputs, copied.targets

    def _copy(self, batches: Batches, first: int, count: int) -> Copied:
        inputs, targets = batches.take(first, count)
        if self.stream is None:
            return Copied(torch.from_numpy(inputs), torch.from_numpy(targets), None)
        with torch.cuda.stream(self.stream):
            return Copied(to_device(inputs, self.device), to_device(targets, self.device), self.stream.record_event())


@contextmanager
def open_loader(streams: Sequence[Batches], device: torch.device) -> Iterator[Loader]:
    """A loader whose thread ends with the block; of one stream, or of two: the second has the late rows."""
    with ThreadPoolExecutor(1, "loader") as pool:
        yield Loader(streams, device, pool)


def to_device(rows: NDArray[np.int64], device: torch.device) -> Tensor:
    """Rows [B, T] on the device, copied without waiting where it is a GPU."""
    tensor = torch.from_numpy(np.ascontiguousarray(rows))
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor
