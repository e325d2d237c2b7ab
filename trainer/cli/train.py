"""The trainer's commands on models and packs: `train`, `calibrate`, `retune` and `recall`."""

from pathlib import Path

import typer

from codec import console


def train(
    config: str = typer.Argument(
        ..., help="A recipe that ships (baseline, record, proxy, small, shipped) or a TOML file."
    ),
    overrides: list[str] = typer.Argument(None, metavar="[KEY=VALUE]...", help="For example model.num_layers=4."),
    output: Path = typer.Option(..., "-o", "--output", help="Folder of the run."),
    resume: bool = typer.Option(False, "--resume", help="Continue from the folder's last checkpoint."),
    as_json: bool = typer.Option(False, "--json", help="Print exactly one JSON object on stdout."),
) -> None:
    """Train a model; under torchrun on several GPUs."""
    import os

    from trainer.recipe import load_recipe
    from trainer.run.loop import train as run

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
        "val_bpb": done.val_bpb,
        "interrupted": done.interrupted,
    }
    console.emit(result, as_json)
    if done.interrupted:
        console.fail(f"interrupted at step {done.steps}; run the same command with --resume to continue", INTERRUPTED)


def calibrate(
    checkpoint: Path = typer.Argument(..., help="A run folder or a .safetensors file."),
    docs: Path | None = typer.Option(None, help="Training text; by default the sample that ships."),
    tokens: int = typer.Option(131_072, min=1, help="Tokens of that text to use."),
    correct: bool = typer.Option(True, help="Measure the real cost of quantizing each group of matrices."),
    as_json: bool = typer.Option(False, "--json", help="Print exactly one JSON object on stdout."),
) -> None:
    """Measure the moments by which `pack --budget` places a model's bits; under torchrun on several GPUs."""
    import time

    from codec.model.checkpoint import load_checkpoint
    from codec.quantization.calibration import FILE, save_calibration
    from trainer.distributed import join
    from trainer.fit.calibrate import calibrate_checkpoint

    begin = time.perf_counter()
    loaded = load_checkpoint(checkpoint)
    path = (checkpoint if checkpoint.is_dir() else checkpoint.parent) / FILE
    with join() as world:
        found = calibrate_checkpoint(loaded, docs, tokens, correct, world)
        if not world.leads:
            return
        save_calibration(path, found.moments)
    result = {
        "file": str(path),
        "matrices": len(found.moments),
        "tokens": found.tokens,
        "factors": {correction.group: correction.factor for correction in found.corrections},
        "seconds": time.perf_counter() - begin,
    }
    console.emit(result, as_json)


def retune(
    pack: Path = typer.Argument(..., help="A pack."),
    checkpoint: Path = typer.Argument(..., help="The run folder from which the pack was made."),
    output: Path = typer.Option(..., "-o", "--output", help="The pack to write."),
    docs: Path | None = typer.Option(None, help="Training text; by default the sample that ships."),
    steps: int = typer.Option(200, min=1, help="Steps of the optimizer."),
    as_json: bool = typer.Option(False, "--json", help="Print exactly one JSON object on stdout."),
) -> None:
    """Fit a pack's gains, scales and steps to its integers; the new pack is no worse on held-out text."""
    import time

    import torch

    from codec.files import atomic_write, check_output, read_bytes
    from codec.model.checkpoint import load_checkpoint
    from trainer.fit.retune import retune_pack

    check_output(output, [pack, checkpoint, *([docs] if docs else [])])
    begin = time.perf_counter()
    loaded, before = load_checkpoint(checkpoint), read_bytes(pack, "pack")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    after, found = retune_pack(before, loaded, docs, steps, device)
    with atomic_write(output) as file:
        file.write(after)
    result = {
        "pack": str(output),
        "pack_bytes": len(after),
        "pack_bytes_before": len(before),
        "kl_nats": found.after,
        "kl_nats_before": found.before,
        "seconds": time.perf_counter() - begin,
    }
    console.emit(result, as_json)


def recall(
    pack: Path = typer.Argument(..., help="A pack."),
    output: Path = typer.Option(..., "-o", "--output", help="The pack to write."),
    docs: Path = typer.Option(..., help="Text like the text to be coded, and not used in training."),
    tokens: int = typer.Option(400_000, min=1, help="Tokens of that text to use."),
    device: str = typer.Option("cpu", help="Device of the model: cpu or cuda."),
    as_json: bool = typer.Option(False, "--json", help="Print exactly one JSON object on stdout."),
) -> None:
    """Fit the match model of a pack, for `--adapt recall`: how far repeats in a document predict its next token."""
    import time

    import codec
    from codec.cli.options import check_device
    from codec.files import atomic_write, check_output, read_bytes
    from codec.pack.change import with_recall
    from trainer.data.documents import read_documents
    from trainer.fit.recall import fit_recall

    check_output(output, [pack, docs])
    begin, before = time.perf_counter(), read_bytes(pack, "pack")
    opened = codec.open(before)
    texts = read_documents(docs, opened.tokenizer)
    with console.progress("learning", tokens, "token") as advance:
        learned = fit_recall(opened, texts, tokens, check_device(device), advance)
    after = with_recall(before, learned.recall)
    with atomic_write(output) as file:
        file.write(after)
    size = max(1, learned.text_bytes)
    result = {
        "pack": str(output),
        "pack_bytes": len(after),
        "pack_bytes_before": len(before),
        "tokens": learned.tokens,
        "bpb_without": learned.bits_without / size,
        "bpb_while_learning": learned.bits_with / size,
        "seconds": time.perf_counter() - begin,
    }
    console.emit(result, as_json)


INTERRUPTED = 130
"""Exit status of an interrupted run: the shell's 128 + SIGINT."""
