"""The processes of a run: a single process, or several that torchrun starts and that hold equal replicas of the model.

Parallelism stays outside the model. Processes exchange tensors while they compute: each exchange begins at once and
returns a `Pending`, to be waited for where its result is needed.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Pending:
    """A tensor that is complete after `wait`."""

    tensor: Tensor
    work: dist.Work | None = None

    def wait(self) -> Tensor:
        """Return the tensor when complete; for a GPU tensor, only the device waits, not the host."""
        if self.work is not None:
            self.work.wait()
        return self.tensor


@dataclass(frozen=True)
class World:
    """This process among all: `rank` of `size`, computing on `device`."""

    rank: int = 0
    size: int = 1
    device: torch.device = CPU

    @property
    def leads(self) -> bool:
        """Return whether this process writes files and prints."""
        return self.rank == 0

    def share(self, count: int) -> int:
        """Return how many of `count` items each process takes; the last processes may find fewer left."""
        return -(-count // self.size)

    def summed(self, value: Tensor) -> Pending:
        """Sum a tensor over all processes, in place."""
        return Pending(value, dist.all_reduce(value, async_op=True) if self.size > 1 else None)

    def total(self, value: Tensor) -> Tensor:
        """Return the sum of a tensor over all processes."""
        return self.summed(value.clone()).wait() if self.size > 1 else value

    def summed_share(self, stack: Tensor) -> Pending:
        """Return this process's part [n, ...] of the sum over all processes of stacks [size * n, ...]."""
        if self.size == 1:
            return Pending(stack)
        parts = list(stack.chunk(self.size))
        mine = torch.empty_like(parts[self.rank])
        return Pending(mine, dist.reduce_scatter(mine, parts, async_op=True))

    def gathered(self, part: Tensor) -> Pending:
        """Return the equal parts [n, ...] of all processes, in rank order: [size * n, ...]."""
        if self.size == 1:
            return Pending(part)
        whole = part.new_empty(self.size * len(part), *part.shape[1:])
        return Pending(whole, dist.all_gather(list(whole.chunk(self.size)), part.contiguous(), async_op=True))

    def told(self, *values: float) -> list[float]:
        """Return the values that the leading process passed, in every process; no GPU is waited for."""
        if self.size == 1:
            return list(values)
        told = torch.tensor(values, dtype=torch.float64)
        dist.broadcast(told, src=0)
        return told.tolist()


ALONE = World()
"""One process, on the CPU."""


@contextmanager
def join() -> Iterator[World]:
    """Enter the world that torchrun's environment variables describe; without them, the world is a single process.

    Each process takes the GPU of its local rank, or the CPU where there is no GPU.
    """
    local = int(os.environ.get("LOCAL_RANK", "0"))
    device = torch.device("cuda", local) if torch.cuda.is_available() else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield World(device=device)
        return
    # small decisions travel over gloo, so that agreeing on them never waits for a GPU
    if device.type == "cuda":
        dist.init_process_group("cpu:gloo,cuda:nccl", device_id=device)
    else:
        dist.init_process_group("gloo")
    try:
        yield World(dist.get_rank(), size, device)
    finally:
        dist.destroy_process_group()
