"""Define the command `compare`, which sets training runs side by side."""

from pathlib import Path
from typing import Annotated

import typer

from codec import console


def compare(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Run folders; their training may still be running.")
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="A folder for runs.json, runs.md and runs.svg.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Draw the losses of training runs in bits per byte over seconds and tokens; tabulate speed and memory."""
    from codec.files import write_files
    from eval.figures import svg
    from eval.screen import compare as comparing
    from eval.screen.compare_plots import curves

    found = comparing.read_runs(runs)
    write_files(output, {**comparing.files(found), "runs.svg": svg(curves(found))})
    # A column for each run: eleven figures side by side are more than a terminal is wide.
    heads, *rows = zip(comparing.HEADS, *map(comparing.cells, found), strict=True)
    console.emit(comparing.as_json(found), as_json, lambda: console.table(heads, rows))
