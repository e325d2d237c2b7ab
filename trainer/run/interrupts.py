"""Signals that ask a run to end, taken as a request: the step in progress is finished first."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress


@contextmanager
def interrupts() -> Iterator[threading.Event]:
    """An event that SIGINT and SIGTERM set, in place of what they do otherwise, while the block runs."""
    event, before = threading.Event(), {}
    with suppress(ValueError):  # raised outside the main thread, which signals do not reach
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, lambda *_: event.set())
    try:
        yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
