"""Limit BLAS to one thread while several threads of this package call it."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from threadpoolctl import threadpool_limits

_lock = threading.Lock()
_users = 0
_limits: threadpool_limits | None = None


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Limit BLAS to one thread while the block runs: threads that wait for each other made packing 7 times slower.

    The limit holds for the process. The first of overlapping blocks sets the limit, and the last block restores what
    was before.
    """
    global _users, _limits
    with _lock:
        _users += 1
        if _users == 1:
            _limits = threadpool_limits(1, "blas")
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if _users == 0 and _limits:
                _limits.restore_original_limits()
