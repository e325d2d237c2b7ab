"""Generate docs/cli.md and what `--help` says from the commands' own help: `python -m tests.support.cli_page`."""

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperGroup

from tests.support.cli_session import session
from underpar import help
from underpar.commands import app

PAGE = Path(__file__).resolve().parents[2] / "docs" / "cli.md"

_HEAD = """# Commands

Every command takes `--json` (one JSON object, last on stdout) and `--help`. Exit status: 0 done, 1 a check failed,
2 bad input, 130 interrupted. This page is generated: `python -m tests.support.cli_page` writes it.
"""


def commands(group: Any = None, names: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Yield (name, command) of every command, those of groups as `data prepare`, sorted."""
    group = group or typer.main.get_command(app)
    for name, command in sorted(group.commands.items()):
        if hasattr(command, "commands"):
            yield from commands(command, (*names, name))
        else:
            yield " ".join((*names, name)), command


def help_text() -> str:
    """Write what `underpar --help` says, 100 columns wide."""
    group = typer.main.get_command(app)
    context = group.make_context("underpar", [])
    context.max_content_width = context.terminal_width = 100
    formatter = context.make_formatter()
    super(TyperGroup, group).format_help(context, formatter)
    return formatter.getvalue()


def is_option(parameter: Any) -> bool:
    """Return whether a parameter of a command is an option, not an argument."""
    return parameter.opts[0].startswith("-")


def page() -> str:
    """Write the whole page as Markdown."""
    found = list(commands())
    index = ", ".join(f"[{name}](#underpar-{name.replace(' ', '-')})" for name, _ in found)
    return "\n".join([_HEAD, index, session(), *(_section(name, command) for name, command in found)])


def _section(name: str, command: Any) -> str:
    arguments = [p for p in command.params if not is_option(p)]
    usage = " ".join([f"underpar {name}", *map(_argument, arguments), "[OPTIONS]"])
    rows = [f"| {_spelling(p)} | {_text(p)} |" for p in command.params if p.name != "help"]
    table = ["| | |", "|---|---|", *rows]
    return "\n".join(["", f"## underpar {name}", "", "```text", usage, "```", "", _help(command), "", *table])


def _argument(parameter: Any) -> str:
    name = re.sub(r"[^A-Z=]", "", (parameter.metavar or parameter.name).upper()) or parameter.name.upper()
    many = "..." if parameter.nargs == -1 else ""
    return f"{name}{many}" if parameter.required else f"[{name}{many}]"


def _spelling(parameter: Any) -> str:
    if not is_option(parameter):
        return f"`{_argument(parameter)}`"
    return ", ".join(f"`{name}`" for name in [*parameter.opts, *parameter.secondary_opts])


def _text(parameter: Any) -> str:
    said = (parameter.help or "").replace("|", "\\|").replace("\n", " ")
    default = parameter.default() if callable(parameter.default) else parameter.default
    plain = isinstance(default, str | int | float | Path) and not isinstance(default, bool) and str(default)
    ends = [f"Default: `{getattr(default, 'value', default)}`."] if plain else []
    if parameter.required and is_option(parameter):
        ends.append("Required.")
    return " ".join([said, *ends]).strip()


def _help(command: Any) -> str:
    """Return the help of a command; paragraphs behind \\b are kept as they are, in a code block."""
    parts = inspect.cleandoc(command.help or "").replace("\\[", "[").split("\n\n")  # rich reads \[ as [
    return "\n\n".join(
        "\n".join(["```text", part.removeprefix("\b\n"), "```"]) if part.startswith("\b") else part for part in parts
    )


if __name__ == "__main__":
    help.FILE.write_text(help_text(), encoding="utf-8")
    PAGE.write_text(page() + "\n", encoding="utf-8")
