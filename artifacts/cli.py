"""The commands of shared models."""

from typing import Annotated

import typer

from codec.console import emit, table

hub = typer.Typer(no_args_is_help=True, help="Packs that are kept and shared.")


def register(app: typer.Typer) -> None:
    """Add the commands of this room."""
    app.add_typer(hub, name="hub")


@hub.callback()
def hub_group() -> None:
    """Packs that are kept and shared."""


@hub.command("list")
def list_packs(as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False) -> None:
    """List the packs that ship."""
    from artifacts.store import shipped

    packs = [{"name": name, "path": str(path), "bytes": path.stat().st_size} for name, path in shipped().items()]
    emit({"packs": packs}, as_json, lambda: table(["name", "path", "bytes"], [list(pack.values()) for pack in packs]))
