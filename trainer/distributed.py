"""The processes of a run: one alone, or several started by torchrun that hold equal replicas of the model.

Parallelism stays outside the model: gradients are averaged by one all-reduce after the last backward pass of a step.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

CPU = torch.device("cpu")


@dataclass(frozen=True)
class World:
    """This process's place among all: `rank` of `size`, computing on `device`."""

    rank: int = 0
    size: int = 1
    device: torch.device = CPU

    @property
    def leads(self) -> bool:
        """Whether this process writes files and talks."""
        return self.rank == 0

    def average_gradients(self, tensors: Iterable[nn.Parameter]) -> None:
        """Replace each gradient by its mean over all processes."""
        if self.size == 1:
            return
        holders = [tensor for tensor in tensors if tensor.grad is not None]
        flat = torch.cat([tensor.grad.flatten() for tensor in holders if tensor.grad is not None])
        dist.all_reduce(flat)
        flat /= self.size
        for tensor, part in zip(holders, flat.split([tensor.numel() for tensor in holders]), strict=True):
            tensor.grad = part.view_as(tensor)

    def total(self, value: Tensor) -> Tensor:
        """The sum of a tensor over all processes."""
        if self.size > 1:
            value = value.clone()
            dist.all_reduce(value)
        return value

    def gather(self, part: Tensor) -> Tensor:
        """The equal parts [n, ...] of all processes, in rank order: [size * n, ...]."""
        if self.size == 1:
            return part
        parts = [torch.empty_like(part) for _ in range(self.size)]
        dist.all_gather(parts, part)
        return torch.cat(parts)

    def told(self, *values: float) -> list[float]:
        """What the leading process passed: the others' values give way to its own. Waits for no GPU."""
        if self.size == 1:
            return list(values)
        told = torch.tensor(values, dtype=torch.float64)
        dist.broadcast(told, src=0)
        return told.tolist()


ALONE = World()
"""One process, on the CPU."""


@contextmanager
def join() -> Iterator[World]:
    """The world that torchrun's environment variables describe; a single process where there are none.

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
