"""Streams of a GPU beside the current one."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch

T = TypeVar("T")


@contextmanager
def side_stream() -> Iterator[None]:
    """What the block launches runs on a stream of its own, as a capture wants it, after what came before."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        yield
    torch.cuda.current_stream().wait_stream(side)


def side_by_side(first: Callable[[], T], *others: Callable[[], T]) -> list[T]:
    """Results of jobs that need nothing of one another.

    In a graph that is captured they become branches, which a GPU runs together: a step's kernels leave much of it idle.
    Elsewhere they run in turn.
    """
    if not (torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()):
        return [job() for job in (first, *others)]
    here = torch.cuda.current_stream()
    beside, results = [torch.cuda.Stream() for _ in others], []
    for stream, job in zip(beside, others, strict=True):
        stream.wait_stream(here)
        with torch.cuda.stream(stream):
            results.append(job())
    results.insert(0, first())
    for stream in beside:
        here.wait_stream(stream)
    return results
