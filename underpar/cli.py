"""The `underpar` command: the commands of all rooms, and what becomes of their errors."""

import typer

import artifacts.cli
import codec.cli
import eval.cli
import trainer.cli
from codec.console import CheckFailed, fail
from codec.errors import CodecError

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)


@app.callback()
def underpar() -> None:
    """Pack a language model under 16 MB and prove, by really coding the bytes, what it is worth."""


for room in (artifacts, codec, trainer, eval):
    room.cli.register(app)


def main() -> None:
    """Run the command line: exit status 0 done, 1 a check failed, 2 bad input, 130 interrupted."""
    try:
        app(prog_name="underpar")
    except CheckFailed as failed:
        fail(one_line(failed), 1)
    except CodecError as error:
        fail(one_line(error), 2)
    except OSError as error:
        fail(f"{one_line(error)}; check the path, its permissions and the space on its disk", 2)


def one_line(error: Exception) -> str:
    """The message of an error, whatever a file that caused it put there."""
    return " ".join(str(error).split())
