"""The output of every command: progress on a terminal, one JSON object on stdout, exit status 0, 1 or 2.

Messages for people go to stderr, so that stdout holds the result alone.
"""

import json
import math
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from threading import Lock
from typing import TYPE_CHECKING, Any, TypeVar

from codec.errors import CodecError

if TYPE_CHECKING:  # rich is imported where something is drawn: to import it takes as long as to code a short text
    from rich.console import Console
    from rich.progress import Progress
    from rich.table import Table

Advance = Callable[[float], None]
"""Called by long work with the amount done since the last call, in the unit of the total it was given."""

STOPS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
"""Signals that ask a process to end."""

_LINE_EVERY = 60.0  # seconds, where there is no terminal
_WARN_AFTER, _LONG = 10.0, 3600.0  # seconds after which work that takes longer than so many is told of

_MOMENT = 2.0  # seconds

T = TypeVar("T")


class Notes:
    """Lines for people on stderr, none while `quiet`."""

    def __init__(self) -> None:
        self.quiet = False

    @property
    def is_terminal(self) -> bool:
        """Return whether people look at stderr as it is written."""
        return sys.stderr is not None and sys.stderr.isatty()

    @cached_property
    def console(self) -> "Console":
        """Return the console that draws on a terminal; lines that the console prints go above a bar."""
        from rich.console import Console

        return Console(stderr=True)

    def print(self, line: str) -> None:
        """Print a line as it is, without markup."""
        if self.quiet or sys.stderr is None:
            return
        if self.is_terminal:
            self.console.print(line, markup=False, highlight=False, soft_wrap=True)
        else:
            print(line, file=sys.stderr)


notes = Notes()


class CheckFailed(Exception):
    """A check ran and did not hold (exit status 1)."""


def ignore_progress(amount: float) -> None:
    """Ignore progress: the `Advance` of callers that show none."""


class Bar:
    """The `Advance` of a progress bar, or of a line a minute where stderr is no terminal.

    Args:
        what, unit: what the work is called, and what it is measured in.
        total: all of it, None where that is not known.
    """

    def __init__(self, bar: "Progress | None", what: str, total: float | None, unit: str):
        self._bar, self._what, self._total, self._unit = bar, what, total, unit
        self._task = bar.add_task(what, total=total, rate="") if bar else None
        self._done, self._begun = 0.0, time.monotonic()
        self._told, self._warned = self._begun, False
        self._waits: dict[str, float] = {}
        self._waits_since: float | None = None
        self._lock = Lock()  # several threads may decode

    def wait_for(self, what: str) -> None:
        """Show what the work waits for, once, if it takes more than a moment; the wait until progress is no work."""
        now = time.monotonic()
        self._waits_since = self._waits_since or now
        if now - self._waits.setdefault(what, now) < _MOMENT:
            return
        self._waits[what] = math.inf
        if self._bar and self._task is not None:
            self._bar.update(self._task, rate=what)
        else:
            say(f"{self._what}: {what}")

    def __call__(self, amount: float, note: str = "") -> None:
        """Add an amount; `note` goes behind the rate."""
        with self._lock:
            self._add(amount, note)

    def _add(self, amount: float, note: str) -> None:
        self._done += amount
        now = time.monotonic()
        if self._waits_since is not None:
            self._begun, self._waits_since = self._begun + now - self._waits_since, None
        rate = self._done / max(1e-9, now - self._begun)
        text = f"{rate:,.0f} {self._unit}/s" if self._unit else ""
        if self._bar and self._task is not None and self._done:
            self._bar.update(self._task, advance=amount, rate=text + (f", {note}" if note else ""))
        left = (self._total - self._done) / rate if self._total and rate else None
        share = f"{self._done / self._total:.0%}" if self._total else f"{self._done:,.0f}"
        done = f"{self._done:,.0f} {self._unit}, {text}" if self._unit else share
        line = f"{self._what}: {done}" + (f", {note}" if note else "")
        if left is not None:
            line += f", about {duration(left)} left"
        if not self._warned and left is not None and now - self._begun > _WARN_AFTER:
            self._warned = True
            if left > _LONG:
                say(line)
        if now - self._told > _LINE_EVERY and self._done and not notes.is_terminal:
            self._told = now
            say(line)


_bars: list[Bar] = []  # of the progress that is shown, the innermost last


@contextmanager
def progress(what: str, total: float | None, unit: str = "") -> Iterator[Bar]:
    """Show progress on stderr while the block runs: a bar on a terminal, otherwise a line a minute.

    The block receives a `Bar`, which is an `Advance`.
    """
    if notes.quiet or not notes.is_terminal:
        with _shown(Bar(None, what, total, unit)) as shown:
            yield shown
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=notes.console, transient=True) as bar, _shown(Bar(bar, what, total, unit)) as shown:
        yield shown


@contextmanager
def _shown(bar: Bar) -> Iterator[Bar]:
    _bars.append(bar)
    try:
        yield bar
    finally:
        _bars.remove(bar)


def wait_for(what: str) -> None:
    """Say what the work waits for whose progress is shown, and end here if a signal asked for the end of the work."""
    check_stopped()
    if _bars:
        _bars[-1].wait_for(what)


def duration(seconds: float) -> str:
    """Say a time as people do.

    >>> duration(90), duration(7200), duration(200_000)
    ('90 s', '2.0 h', '2.3 days')
    """
    for size, name in ((86_400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {name}"
    return f"{seconds:.0f} s"


def say(message: str) -> None:
    """Print a line for people on stderr."""
    notes.print(printable(message))


def printable(text: str, most: int = 1000) -> str:
    r"""Shorten a text in the middle, and escape its control characters.

    >>> printable("a" + chr(27) + "[31mb")
    'a\\x1b[31mb'
    """
    if len(text) > most:
        text = f"{text[: most // 2]} ... {text[-most // 2 :]}"
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in text)


class Stopped(BaseException):
    """A signal asked for the end of this process; notes on the exception say what is kept of the work.

    No KeyboardInterrupt, of which typer makes a status without a word.

    Attributes:
        number: of the signal.
    """

    def __init__(self, number: int):
        super().__init__(f"interrupted by {signal.Signals(number).name}")
        self.number = number

    def __str__(self) -> str:
        return "; ".join([super().__str__(), *getattr(self, "__notes__", [])])


_caught: list[int] = []  # signals that came in a `stoppable` block


def check_stopped() -> None:
    """Raise Stopped where a signal has asked for the end: a destructor or a callback may have swallowed the first."""
    if _caught:
        raise Stopped(_caught[0])


@contextmanager
def stoppable() -> Iterator[None]:
    """While the block runs, let SIGINT, SIGTERM and SIGHUP, unless they are ignored, raise Stopped in the main thread.

    So files are cleaned up as by any exception. Threads are not waited for (`codec.devices.thread_pool`).
    """

    def stop(number: int, frame: object) -> None:
        _caught.append(number)
        raise Stopped(number)

    before = {number: signal.getsignal(number) for number in STOPS}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _caught.clear()


def emit(result: Mapping[str, Any], as_json: bool, human: Callable[[], Any] | None = None) -> None:
    """Print a command's result on stdout: one JSON object, or the result of `human` (default: a two-column table)."""
    if as_json:
        print(json.dumps(result))
    elif not notes.quiet:
        from rich.console import Console

        Console(file=sys.stdout).print(human() if human else two_columns(result))


def two_columns(result: Mapping[str, Any]) -> "Table":
    """Return a table of the scalar entries of `result`."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(show_header=False)
    for name, value in result.items():
        if isinstance(value, (list, dict)):
            continue
        table.add_row(name, escape(readable(value)))
    return table


def table(headers: Sequence[str], rows: Sequence[Sequence[Any]]) -> "Table":
    """Return a table whose first column is text and whose other columns are right-aligned."""
    from rich.markup import escape
    from rich.table import Table

    out = Table()
    for i, header in enumerate(headers):
        out.add_column(header, justify="right" if i else "left", overflow="ellipsis" if i else "fold")
    for row in rows:
        out.add_row(*(escape(readable(value)) for value in row))
    return out


def readable(value: Any) -> str:
    """Format a number for people: thousands separated, floats to six digits."""
    if isinstance(value, bool) or value is None:
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.6g}"
    return printable(str(value))


def listed(text: str, kind: Callable[[str], T]) -> list[T]:
    """Return the values of an option that is a list separated by commas.

    Raises:
        CodecError: a value is not of its kind.
    """
    try:
        return [kind(part.strip()) for part in text.split(",") if part.strip()]
    except ValueError as error:
        raise CodecError(f"{text!r}: expected numbers separated by commas ({error})") from error


def complain(message: str) -> None:
    """Print the message of an error on one line of stderr, also where notes are off."""
    quiet, notes.quiet = notes.quiet, False
    say(f"underpar: {' '.join(message.split())}")
    notes.quiet = quiet


def fail(message: str, status: int) -> None:
    """Print the message of an error as `complain` does, and exit with `status`."""
    complain(message)
    sys.exit(status)
