"""The trainer's commands: `train`, and those for text in `trainer.cli_data`."""

from pathlib import Path

import typer

from codec import console


def register(app: typer.Typer) -> None:
    """Add `train` and the commands for text."""
    from trainer import cli_data

    app.command("train")(train)
    app.command("calibrate")(calibrate)
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


def calibrate(
    checkpoint: Path = typer.Argument(..., help="A run folder or a .safetensors file."),
    docs: Path | None = typer.Option(None, help="Training text; by default the sample that ships."),
    tokens: int = typer.Option(131_072, min=1, help="How much of it to look at."),
    as_json: bool = typer.Option(False, "--json", help="Print exactly one JSON object on stdout."),
) -> None:
    """Measure what a model's layers see, so that `pack --budget` spends its bits where they matter."""
    import time

    import torch

    from codec.calibration import FILE, save_calibration
    from codec.checkpoint import load_checkpoint
    from trainer.calibrate import calibrate as measure
    from trainer.calibrate import float_model, text_batches

    begin = time.perf_counter()
    loaded = load_checkpoint(checkpoint)
    model = float_model(loaded, "cuda" if torch.cuda.is_available() else "cpu")
    batches = text_batches(loaded, docs, tokens)
    with console.progress("calibrating", sum(batch.numel() for batch in batches), "token") as advance:
        found = measure(model, batches, advance=advance)
    path = (checkpoint if checkpoint.is_dir() else checkpoint.parent) / FILE
    save_calibration(path, found)
    result = {
        "file": str(path),
        "matrices": len(found),
        "tokens": sum(batch.numel() for batch in batches),
        "seconds": time.perf_counter() - begin,
    }
    console.emit(result, as_json)


INTERRUPTED = 130
"""Exit status of a run that an interrupt ended, as a shell gives it."""
