"""Define the commands of this room; the only folder of it that imports typer."""

import typer

from codec.cli import decode, encode, pack


def register(app: typer.Typer) -> None:
    """Add `pack`, `unpack`, `inspect`, `encode`, `decode` and `salvage` to `app`."""
    for command in (pack.pack, pack.unpack, pack.inspect, encode.encode, decode.decode, decode.salvage):
        app.command()(command)
