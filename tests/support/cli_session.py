"""Run a session of the command line, for docs/cli.md: what people type, and what a terminal of 80 columns shows."""

import io
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

from underpar.cli import main

NOTES = """The archive of a library is not a heap of books. Somebody has written down where each of them stands,
and whoever asks for one is led to its shelf without passing all the others on the way.
"""

LINES = """{"id": 1, "text": "One line of JSON, and its other fields."}
{"id": 2,  "text": "Spaces and the order of keys come back as they were."}
"""

SESSION = """underpar encode notes.txt lines.jsonl
underpar encode notes.txt
underpar decode -l notes.txt.upz lines.jsonl.upz
underpar encode notes.txt lines.jsonl -o both.upz -q
underpar decode both.upz --file notes.txt --bytes 4:11 -o -
underpar decode -t both.upz -q
underpar decode both.upz -v -q
underpar decode both.upz
underpar decode notes.txt.upz --document 7 -o -
underpar compress notes.txt"""

WARMING = """underpar encode notes.txt lines.jsonl -o warm.upz -q
underpar decode warm.upz -t -q"""
"""What compiles all that the session needs: a command that compiles for a minute says how far it has come."""


def session() -> str:
    """Run the session in a new folder; return the page's section."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            Path("notes.txt").write_text(NOTES)
            Path("lines.jsonl").write_text(LINES)
            for command in WARMING.splitlines():
                _run(command)
            shown = [f"$ {command}\n{_run(command)}" for command in SESSION.splitlines()]
        finally:
            os.chdir(before)
    text = "".join(shown).replace(f"{os.path.realpath(folder)}/", "").rstrip()
    return "\n".join(["", "## A session", "", "```text", text, "```"])


def _run(command: str) -> str:
    """Return what a command writes."""
    with _terminal() as out:
        try:
            with mock.patch.object(sys, "argv", command.split()):
                main()
        except SystemExit as ended:
            status = ended.code
    text = out.buffer.getvalue().decode()  # type: ignore[attr-defined]
    if text and not text.endswith("\n"):
        text += "\n"
    return text + (f"(status {status})\n" if status else "")


@contextmanager
def _terminal() -> Iterator[io.TextIOWrapper]:
    """Take both standard streams together, in their order."""
    out = io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True)
    with (
        mock.patch.object(sys, "stdout", out),
        mock.patch.object(sys, "stderr", out),
        mock.patch.dict(os.environ, {"COLUMNS": "80"}),
    ):
        yield out
