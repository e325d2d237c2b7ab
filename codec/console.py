"""The output of every command: progress on a terminal, one JSON object on stdout, exit status 0, 1 or 2.

Messages for people go to stderr, so that stdout holds the result alone.
"""

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from codec.errors import CodecError

Advance = Callable[[float], None]
"""Called by long work with the amount done since the last call, in the unit of the total it was given."""

notes = Console(stderr=True)

T = TypeVar("T")


class CheckFailed(Exception):
    """A check ran and did not hold (exit status 1)."""


def ignore_progress(amount: float) -> None:
    """Ignore progress: the `Advance` of callers that show none."""


@contextmanager
def progress(what: str, total: float, unit: str = "") -> Iterator[Advance]:
    """Show a progress bar on stderr while the block runs, unless stderr is no terminal.

    The block receives an `Advance`.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=notes, transient=True, disable=not notes.is_terminal) as bar:
        task = bar.add_task(what, total=total, rate="")

        def advance(amount: float) -> None:
            bar.advance(task, amount)
            speed = bar.tasks[task].speed
            if speed is not None and unit:
                bar.update(task, rate=f"{speed:,.0f} {unit}/s")

        yield advance


def emit(result: Mapping[str, Any], as_json: bool, human: Callable[[], Any] | None = None) -> None:
    """Print a command's result on stdout: one JSON object, or the result of `human` (default: a two-column table)."""
    if as_json:
        print(json.dumps(result))
        return
    out = Console()
    out.print(human() if human else two_columns(result))


def two_columns(result: Mapping[str, Any]) -> Table:
    """Return a table of the scalar entries of `result`."""
    table = Table(show_header=False)
    for name, value in result.items():
        if isinstance(value, (list, dict)):
            continue
        table.add_row(name, readable(value))
    return table


def table(headers: Sequence[str], rows: Sequence[Sequence[Any]]) -> Table:
    """Return a table whose first column is text and whose other columns are right-aligned."""
    out = Table()
    for i, header in enumerate(headers):
        out.add_column(header, justify="left" if i == 0 else "right")
    for row in rows:
        out.add_row(*map(readable, row))
    return out


def readable(value: Any) -> str:
    """Format a number for people: thousands separated, floats to six digits."""
    if isinstance(value, bool) or value is None:
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.6g}"
    return str(value)


def listed(text: str, kind: Callable[[str], T]) -> list[T]:
    """Return the values of an option that is a list separated by commas.

    Raises:
        CodecError: a value is not of its kind.
    """
    try:
        return [kind(part.strip()) for part in text.split(",") if part.strip()]
    except ValueError as error:
        raise CodecError(f"{text!r}: expected numbers separated by commas ({error})") from error


def fail(message: str, status: int) -> None:
    """Print one line on stderr and exit with `status`."""
    notes.print(f"underpar: {message}", markup=False, highlight=False, soft_wrap=True)
    sys.exit(status)
