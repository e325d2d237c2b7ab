"""Run kernels on streams beside a GPU's current stream."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache

import torch


@contextmanager
def side_stream() -> Iterator[None]:
    """Run the kernels of a block on another stream, after all earlier kernels; a capture of a graph requires this."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        yield
    torch.cuda.current_stream().wait_stream(side)


@lru_cache
def _beside(device: int, count: int) -> list[torch.cuda.Stream]:
    """Return the same streams at every call: only the stream that freed memory can allocate that memory again."""
    return [torch.cuda.Stream(device) for _ in range(count)]


def side_by_side(first: Callable[[], None], *others: Callable[[], None]) -> None:
    """Run jobs that do not depend on each other.

    During the capture of a graph, the jobs become branches of the graph. A GPU runs branches at the same time, because
    a step's kernels leave much of the GPU idle. Otherwise the jobs run one after the other.

    Args:
        first: a job, which stays on the current stream.
        *others: jobs for other streams.
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
