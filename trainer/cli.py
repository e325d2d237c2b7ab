"""The trainer's commands: `train`, and those for text in `trainer.cli_data`."""

from pathlib import Path

import typer

from codec import console


def register(app: typer.Typer) -> None:
    """Add `train` and the commands for text."""
    from trainer import cli_data

    app.command("train")(train)
    cli_data.register(app)


def train(
    config: str = typer.Argument(..., help="A recipe that ships (baseline, record, small, shipped) or a TOML file."),
    overrides: list[str] = typer.Argument(None, metavar="[KEY=VALUE]...", help="For example model.num_layers=4."),
    output: Path = typer.Option(..., "-o", "--output", help="Folder of the run."),
    resume: bool = typer.Option(False, "--resume", help="Go on from the folder's last checkpoint."),
    as_json: bool = typer.Option(False, "--json", help="Print exactly one JSON object on stdout."),
) -> None:
    """Train a model; under torchrun on several GPUs."""
    import os

    from trainer.loop import train as run
    from trainer.recipe import load_recipe

    done = run(load_recipe(config, overrides or []), output, resume)
    if int(os.environ.get("RANK", "0")):
        return
    result = {
        "run": str(done.folder),
        "steps": done.steps,
        "tokens": done.tokens,
        "seconds": done.seconds,
        "train_loss": done.train_loss,
        "val_loss": done.val_loss,
        "interrupted": done.interrupted,
    }
    console.emit(result, as_json)
    if done.interrupted:
        console.fail(f"interrupted at step {done.steps}; run the same command with --resume to go on", INTERRUPTED)


INTERRUPTED = 130
"""Exit status of a run that an interrupt ended, as a shell gives it."""
