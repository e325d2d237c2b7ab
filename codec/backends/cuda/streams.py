"""Streams of a GPU beside the current one."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache

import torch


@contextmanager
def side_stream() -> Iterator[None]:
    """What the block launches runs on a stream of its own, as a capture wants it, after what came before."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        yield
    torch.cuda.current_stream().wait_stream(side)


@lru_cache
def _beside(device: int, count: int) -> list[torch.cuda.Stream]:
    """The same streams for every branch: what a stream has freed, it alone can have again."""
    return [torch.cuda.Stream(device) for _ in range(count)]


def side_by_side(first: Callable[[], None], *others: Callable[[], None]) -> None:
    """Run jobs that need nothing of one another.

    In a graph that is captured they become branches, which a GPU runs together: a step's kernels leave much of it idle.
    Elsewhere they run in turn.
    """
    if not (torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()):
        for job in (first, *others):
            job()
        return
    here = torch.cuda.current_stream()
    beside = _beside(torch.cuda.current_device(), len(others))
    for stream, job in zip(beside, others, strict=True):
        stream.wait_stream(here)
        with torch.cuda.stream(stream):
            job()
    first()
    for stream in beside:
        here.wait_stream(stream)
