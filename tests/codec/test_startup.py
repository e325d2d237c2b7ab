"""codec.startup: time is counted once, whatever is nested or runs at a time."""

import threading
import time

from codec import startup
from codec.startup import starting


def test_nested_and_simultaneous_times_count_once(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    before = startup.seconds()

    @starting()
    def open_model() -> None:
        with starting():
            clock[0] += 2

    open_model()
    assert startup.seconds() - before == 2
    startup.begin()
    other = threading.Thread(target=startup.begin)
    other.start()
    other.join()
    clock[0] += 3
    startup.end()
    startup.end()
    assert startup.seconds() - before == 5


def test_an_error_ends_what_it_interrupts(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    before = startup.seconds()
    try:
        with starting():
            clock[0] += 1
            raise ValueError
    except ValueError:
        clock[0] += 10
    assert startup.seconds() - before == 1
