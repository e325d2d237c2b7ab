"""Define the commands of this room; the only folder of it that imports typer."""

import typer

from artifacts.cli import share, submit


def register(app: typer.Typer) -> None:
    """Add `ledger`, `submit` and the group `hub` to `app`."""
    app.command()(submit.ledger)
    app.command()(submit.submit)
    app.add_typer(share.hub, name="hub")
