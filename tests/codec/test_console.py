"""codec.console: what people are told while work goes on."""

import signal
import time
from contextlib import suppress

import pytest

from codec import console
from codec.console import Stopped, check_stopped, notes, progress, stoppable, wait_for


@pytest.fixture(autouse=True)
def no_terminal(monkeypatch):
    monkeypatch.setattr(notes, "quiet", False)
    monkeypatch.setattr(console, "_MOMENT", 0.0)


def test_what_work_waits_for_is_said_once(capsys):
    wait_for("compiling")
    with progress("encoding", 10, "byte"):
        for _ in range(3):
            wait_for("compiling")
    wait_for("compiling")
    assert capsys.readouterr().err == "encoding: compiling\n"


def test_a_short_wait_is_not_worth_a_word(capsys, monkeypatch):
    monkeypatch.setattr(console, "_MOMENT", 100.0)
    with progress("encoding", 10, "byte"):
        wait_for("compiling")
        wait_for("compiling")
    assert capsys.readouterr().err == ""


def test_nothing_is_not_progress(capsys, monkeypatch):
    monkeypatch.setattr(console, "_LINE_EVERY", 0.0)
    with progress("encoding", 10, "byte") as bar:
        bar(0)
        assert capsys.readouterr().err == ""
        bar(5)
    assert "encoding: 5 byte" in capsys.readouterr().err


def test_a_wait_does_not_make_work_slow(capsys, monkeypatch):
    """Work takes 81 seconds besides the wait of 1,000, for 400 bytes: 9,600 more take half an hour."""
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    with progress("encoding", 10_000, "byte") as bar:
        clock[0] = 19.0
        bar(90)
        clock[0] = 20.0
        wait_for("compiling")
        clock[0] = 1000.0
        wait_for("compiling")
        clock[0] = 1020.0
        bar(10)
        capsys.readouterr()
        clock[0] = 1081.0
        bar(300)
    assert capsys.readouterr().err == "encoding: 400 byte, 5 byte/s, about 32.4 min left\n"


@pytest.fixture(params=[signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def number(request):
    """A signal that is not ignored, as some are where the tests run under nohup."""
    inherited = signal.signal(request.param, signal.SIG_DFL)
    yield request.param
    signal.signal(request.param, inherited)


def test_a_signal_ends_the_block_at_once(number):
    with pytest.raises(Stopped) as ended, stoppable():
        try:
            signal.raise_signal(number)
            time.sleep(60)
        except Stopped as stopped:
            stopped.add_note("much is kept")
            raise
    assert ended.value.number == number
    assert str(ended.value) == f"interrupted by {number.name}; much is kept"
    assert signal.getsignal(number) is signal.SIG_DFL


def test_a_signal_that_was_swallowed_is_raised_again(number):
    with stoppable():
        with suppress(Stopped):  # as a destructor does
            signal.raise_signal(number)
        with pytest.raises(Stopped):
            wait_for("compiling")
        with pytest.raises(Stopped):
            check_stopped()
    wait_for("compiling")  # no longer asked to end


def test_an_ignored_signal_stays_ignored(number):
    signal.signal(number, signal.SIG_IGN)
    with stoppable():
        signal.raise_signal(number)
        check_stopped()
