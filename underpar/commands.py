"""The commands of all rooms as one.

A command's module is imported when the command runs: `underpar encode` waits for nothing that only training needs.
"""

import sys
from collections.abc import Iterator, Mapping, MutableMapping
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import artifacts.cli
import codec.cli
import eval.cli
import trainer.cli
from artifacts.share.store import search_path
from codec.console import CheckFailed, emit, notes, table
from codec.pack import store
from underpar import help

store.FOLDERS[:] = search_path()

PLACES: Mapping[str, str] = {
    **artifacts.cli.COMMANDS,
    **codec.cli.COMMANDS,
    **trainer.cli.COMMANDS,
    **eval.cli.COMMANDS,
    "demo": "underpar.commands:demo_command",
}
"""Places of the function or the group of each command, as module:name."""


def function(name: str) -> Any:
    """Import the function, or the group, of a command."""
    module, _, attribute = PLACES[name].partition(":")
    return getattr(import_module(module), attribute)


OTHER_WORDS = {"compress": "encode", "c": "encode", "decompress": "decode", "extract": "decode", "x": "decode"}
"""What other tools call our commands, for the advice behind a wrong word."""


class Commands(MutableMapping[str, Any]):
    """Commands by name, each made of its function when somebody asks for the command."""

    def __init__(self) -> None:
        self._made: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._made:
            found = function(name)
            if not isinstance(found, typer.Typer):
                group = typer.Typer(add_completion=False)
                group.command(name)(found)
                found = group
            self._made[name] = typer.main.get_command(found)
            self._made[name].name = name
        return self._made[name]

    def __setitem__(self, name: str, command: Any) -> None:
        self._made[name] = command

    def __delitem__(self, name: str) -> None:
        del self._made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(PLACES))

    def __len__(self) -> int:
        return len(PLACES)


class Group(TyperGroup):
    """The group of all commands, whose help is read from a file: to write it takes the modules of all commands."""

    def __init__(self, **settings: Any):
        super().__init__(**{**settings, "commands": Commands()})

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the command that the first word names; an error where it names none."""
        if args[0] in OTHER_WORDS:
            ctx.fail(f"No such command {args[0]!r}. Did you mean {OTHER_WORDS[args[0]]!r}?")
        return super().resolve_command(ctx, args)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help of all commands."""
        formatter.write(help.FILE.read_text(encoding="utf-8"))


app = typer.Typer(cls=Group, pretty_exceptions_enable=False, context_settings={"help_option_names": ["--help", "-h"]})


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
        print(help.version())
    elif context.invoked_subcommand is None:
        if sys.stdin is None or sys.stdin.isatty():
            print(context.get_help())
        elif decompress:
            from codec.cli.decode import decode

            decode([Path("-")], quiet=True)
        else:
            from codec.cli.encode import encode

            encode([Path("-")], quiet=True)


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
        notes.print(line)
    if not done["ok"]:
        raise CheckFailed("a proof does not hold")
