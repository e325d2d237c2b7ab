"""Count the seconds in which this process gets ready: it opens a model, compiles, or checks what the compiler made."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

_lock = threading.Lock()
_depth = 0  # blocks that are getting ready now, in all threads
_begun = 0.0  # when the first of them began
_seconds = 0.0


def begin() -> None:
    """Note that this thread begins to get ready; `end` must follow."""
    global _depth, _begun
    with _lock:
        if not _depth:
            _begun = time.perf_counter()
        _depth += 1


def end() -> None:
    """Note that this thread is ready."""
    global _depth, _seconds
    with _lock:
        _depth -= 1
        if not _depth:
            _seconds += time.perf_counter() - _begun


@contextmanager
def starting() -> Iterator[None]:
    """Count the time of a block, or of a function; what several blocks or threads do at a time counts once."""
    begin()
    try:
        yield
    finally:
        end()


def seconds() -> float:
    """Return the seconds of all blocks that have ended."""
    return _seconds
