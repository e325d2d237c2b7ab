"""The `underpar` command: the commands of all rooms, and the messages and exit statuses of their errors."""

import io
import os
import sys
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Annotated

import typer

import artifacts.cli
import codec.cli
import eval.cli
import trainer.cli
from artifacts.share.store import search_path
from codec.console import CheckFailed, clean_up_when_stopped, emit, fail, notes, table
from codec.errors import CodecError
from codec.pack import store

app = typer.Typer(pretty_exceptions_enable=False, context_settings={"help_option_names": ["--help", "-h"]})


@app.callback(invoke_without_command=True)
def underpar(
    context: typer.Context,
    decompress: Annotated[bool, typer.Option("-d", help="Without a command: decode standard input.")] = False,
    version: Annotated[bool, typer.Option("--version", "-V", help="Say which version this is.")] = False,
) -> None:
    """Pack a language model under 16 MB and prove its bits per byte by really coding text.

    Without a command, and with a pipe for input, encode standard input to standard output, as tar -I asks for.
    """
    if version:
        try:
            print(f"underpar {version_of('underpar')}")
        except PackageNotFoundError:
            print("underpar, from a folder that is not installed")
    elif context.invoked_subcommand is None:
        if sys.stdin is None or sys.stdin.isatty():
            print(context.get_help())
        elif decompress:
            codec.cli.decode.decode([Path("-")], quiet=True)
        else:
            codec.cli.encode.encode([Path("-")], quiet=True)


store.FOLDERS[:] = search_path()

for room in (artifacts, codec, trainer, eval):
    room.cli.register(app)


@app.command("demo")
def demo_command(
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for the run and its report.")] = Path("demo"),
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Prove the shipped pack, then train, pack and prove a model on the sample, in six minutes; write a report."""
    from artifacts.share.packs import find
    from codec.files import read_bytes
    from trainer.data.sample import val_documents
    from trainer.recipe import load_recipe
    from underpar.demo import demo

    done = demo(output, read_bytes(find("small"), "pack"), load_recipe("small"), val_documents()).to_json()
    rows = [list(row.values()) for row in done["table"]]
    headers = [f"{done['text_bytes']:,} bytes of text", "coded bytes", "bits per byte", "with the model's bytes"]
    emit(done, as_json, lambda: table(headers, rows))
    for line in (
        "gzip, xz, zstd and brotli compress all pages as one stream; a pack codes each page alone.",
        "So little text never pays for its model (last column). Over gigabytes, the model's cost vanishes.",
        f"Pictures: {done['report']}. It took {done['seconds']:.0f} seconds.",
    ):
        notes.print(line, markup=False, highlight=False, soft_wrap=True)
    if not done["ok"]:
        raise CheckFailed("a proof does not hold")


def main() -> None:
    """Run the command line: exit status 0 done, 1 a check failed, 2 bad input, 130 interrupted, 141 a closed pipe."""
    # Threads that wait for each other must not spin: on shared cores, a step of training would take 20 times as long.
    # OpenMP reads this variable when torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    clean_up_when_stopped()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that lacks a character gets another in its place
            stream.reconfigure(errors="backslashreplace")
    try:
        try:
            app(prog_name="underpar")
        except SystemExit as ended:
            if isinstance(ended.__context__, BrokenPipeError):  # which typer makes status 1 of
                _leave_pipe()
            if sys.stdout is not None:
                sys.stdout.flush()
            raise
    except BrokenPipeError:
        _leave_pipe()
    except CheckFailed as failed:
        fail(one_line(failed), 1)
    except CodecError as error:
        fail(one_line(error), 2)
    except OSError as error:
        fail(f"{one_line(error)}; check the path, its permissions and the space on its disk", 2)


def _leave_pipe() -> None:
    """End silently because nobody reads this process's output; 141 is the status that a shell gives SIGPIPE."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)  # for what is flushed at the end of Python
    sys.exit(141)


def one_line(error: Exception) -> str:
    """Return the message of an error on one line, whatever line breaks it holds."""
    return " ".join(str(error).split())
