"""Define the commands of this room; the only folder of it that imports typer."""

import typer

from trainer.cli import data, train


def register(app: typer.Typer) -> None:
    """Add `train`, `calibrate`, `retune`, `recall`, and the groups `data` and `tokenizer` to `app`."""
    for command in (train.train, train.calibrate, train.retune, train.recall):
        app.command()(command)
    data.register(app)
