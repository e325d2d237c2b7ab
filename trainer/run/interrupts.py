"""Signals that ask a run to end: the step in progress is finished first."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress


@contextmanager
def interrupts() -> Iterator[threading.Event]:
    """Yield an event that SIGINT and SIGTERM set while the block runs, instead of their usual effect."""
    event, before = threading.Event(), {}
    with suppress(ValueError):  # raised outside the main thread, which gets no signals
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, lambda *_: event.set())
    try:
        yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
