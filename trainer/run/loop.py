"""The training loop: from a recipe to a run folder with the trained model, over one process or several.

    torchrun --nproc-per-node=8 -m underpar train record -o runs/record

A run folder holds `model.safetensors` and `tokenizer.model` when the run is done, `resume.pt` while it goes on, and
`train.log`, `metrics.jsonl` and `recipe.json`.
"""

import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from codec.console import CheckFailed
from codec.errors import CodecError
from codec.files import atomic_write
from codec.model.checkpoint import WEIGHTS, save_checkpoint
from trainer.data.loader import Loader, Stream, open_loader
from trainer.data.source import Source, bytes_per_token, open_batches, open_source
from trainer.distributed import World, join
from trainer.model.qat import quantized_loss, rounding_of
from trainer.optim.schedule import lr_scale, over, phase, phases
from trainer.recipe import RECIPE, Recipe
from trainer.run.device import attention_kernels, peak_memory, throttle
from trainer.run.interrupts import interrupts
from trainer.run.log import METRICS, RunLog, open_log
from trainer.run.losses import Losses, losses_of
from trainer.run.other_models import first_weights, teacher_of
from trainer.run.state import RESUME, State, check_finite, open_checkpoints
from trainer.run.step import descend, micro_batches, prime, take
from trainer.run.validation import Validation, validate


@dataclass(frozen=True)
class Outcome:
    """The end of a run.

    Attributes:
        folder: of the run.
        steps: steps made.
        tokens: tokens trained on.
        seconds: of training.
        train_loss: nats of the last step's batch; None if no step was made.
        val_loss: nats; None if no validation tokens were scored.
        val_bpb: bits per byte; None if no validation tokens were scored.
        interrupted: whether an interrupt ended the run.
    """

    folder: Path
    steps: int
    tokens: int
    seconds: float
    train_loss: float | None
    val_loss: float | None
    val_bpb: float | None
    interrupted: bool


def train(recipe: Recipe, folder: str | Path, resume: bool = False) -> Outcome:
    """Train the model of a recipe into a run folder; every process of a run calls this.

    An interrupt (SIGINT or SIGTERM) ends the run with a checkpoint after the step in progress, for `resume` to
    continue.

    Args:
        recipe: the settings.
        folder: of the run.
        resume: whether to continue from the checkpoint in `folder`; a run killed before the first starts anew.

    Raises:
        CodecError: `folder` already holds a run and `resume` is off, or the run is finished, or the recipe does not fit
            the data or the number of processes.
        CheckFailed: the loss or a weight became infinite or NaN; no checkpoint has such weights.
    """
    folder = Path(folder)
    with join() as world:
        goes_on = check_folder(folder, resume, world)
        if world.leads:
            with atomic_write(folder / RECIPE) as file:
                file.write(json.dumps(recipe.to_dict(), indent=1).encode())
        source = open_source(recipe, folder, world)
        state = State.start(recipe, world, None if goes_on else first_weights(recipe, source.tokenizer))
        losses = losses_of(state.model, recipe, world, teacher_of(recipe, source.tokenizer, world))
        streams = open_batches(source, recipe, world)
        parts = [micro_batches(recipe, world, phase) for phase in phases(recipe)]
        with attention_kernels(world.device), open_loader(streams, world.device) as loader:
            if world.device.type == "cuda":
                prime(state, losses, loader, recipe, world)
            if goes_on:
                state.restore(folder, recipe, world.device)
            lengths = [bytes_per_token(batches, source.tokenizer, world, source.shares[0]) for batches in streams]
            with open_log(folder, recipe, state, world, lengths) as log:
                log.line(f"model_params:{sum(p.numel() for p in state.model.parameters())}")
                log.line(f"world_size:{world.size} grad_accum_steps:{parts[-1]}")
                train_loss, interrupted = run(state, losses, loader, recipe, world, folder, log)
                log.line(epochs(state, streams))
                if memory := peak_memory(world.device):
                    log.line(f"peak memory allocated: {memory >> 20} MiB")
                score = None if interrupted else finish(state, source, recipe, world, folder, log)
    val_loss, val_bpb = (score.loss, score.bpb) if score else (None, None)
    return Outcome(folder, state.step, state.tokens, state.elapsed, train_loss, val_loss, val_bpb, interrupted)


def run(
    state: State, losses: Losses, loader: Loader, recipe: Recipe, world: World, folder: Path, log: RunLog
) -> tuple[float | None, bool]:
    """Make steps until a cap is reached or an interrupt comes.

    Returns:
        the loss of the last step, and whether an interrupt ended the loop.
    """
    plan, saved = recipe.train, state.elapsed
    begun = time.perf_counter() - state.elapsed
    wait = throttle(world.device)
    with interrupts() as interrupt, open_checkpoints(folder, recipe, world) as keep:
        value, done, asked = None, over(plan, state.step, state.elapsed), 0.0
        while not done and not asked:
            scale = lr_scale(plan, state.step, state.elapsed)
            now = phase(recipe, state.step, state.elapsed)
            parts = take(loader, state.position(now.late), now, recipe, world)
            batch_loss = descend(state, losses.of(state.model, now), parts, recipe, scale)
            state.step, state.tokens = state.step + 1, state.tokens + now.batch_tokens
            state.late += now.batch_tokens if now.late else 0
            state.update_average(plan)
            wait()
            state.elapsed, asked = world.told(time.perf_counter() - begun, interrupt.is_set())
            done = over(plan, state.step, state.elapsed)
            if done or asked or log.due(state.step):
                value = world.total(batch_loss).item() / world.size  # waits until the device has finished
                state.elapsed = world.told(time.perf_counter() - begun)[0]
                log.loss(state, now, value, scale)
                if not math.isfinite(value):
                    raise CheckFailed(f"training diverged: loss {value} at step {state.step}; lower the learning rates")
            log.move_bar(state)
            by_time = plan.checkpoint_seconds and state.elapsed - saved >= plan.checkpoint_seconds
            by_step = plan.checkpoint_steps and state.step % plan.checkpoint_steps == 0
            if not done and (asked or by_time or by_step):
                saved = state.elapsed
                keep(state)
    return value, not done


def epochs(state: State, streams: Sequence[Stream]) -> str:
    """Return how often the text and the late text have been read, for the log: repeating a little text overfits."""
    counts = {"epochs": state.tokens - state.late, "late_epochs": state.late}
    found = zip(counts.items(), streams, strict=False)  # the late text may be missing
    return " ".join(f"{name}:{count / batches.tokens:.2f}" for (name, count), batches in found)


def finish(state: State, source: Source, recipe: Recipe, world: World, folder: Path, log: RunLog) -> Validation | None:
    """Save the run's model, and return its validation score if the recipe asks for validation."""
    model = state.finished(recipe, world)
    check_finite(state.step, model.state_dict())
    score = None
    if recipe.train.val_tokens:
        score = validate(model.loss, source, recipe, world)
        found = {"val_loss": score.loss, "val_bpb": score.bpb}
        if recipe.train.qat:
            seen = validate(quantized_loss(model, rounding_of(model, recipe.train)), source, recipe, world)
            found |= {"quantized_val_loss": seen.loss, "quantized_val_bpb": seen.bpb}
        scores = " ".join(f"{name}:{value:.4f}" for name, value in found.items())
        log.line(f"step:{state.step}/{recipe.train.iterations or '-'} {scores}")
        log.record(step=state.step, seconds=state.elapsed, **found)
    if world.leads:
        save_checkpoint(folder, model.state_dict(), recipe.model, source.tokenizer)
        (folder / RESUME).unlink(missing_ok=True)
    return score


def check_folder(folder: Path, resume: bool, world: World) -> bool:
    """Return whether `folder` has a checkpoint to continue from.

    Raises:
        CodecError: `folder` holds a run that would be overwritten, or a finished run.
    """
    if world.leads and resume and (folder / WEIGHTS).exists() and not (folder / RESUME).exists():
        raise CodecError(f"run {folder}: finished already; there is nothing to resume")
    if world.leads and not resume and any((folder / name).exists() for name in (WEIGHTS, RESUME, METRICS)):
        raise CodecError(f"run {folder}: exists already; continue with --resume or choose another folder")
    if world.leads:
        for torn in folder.glob(f".{RESUME}.*"):  # a checkpoint that a kill left unfinished
            torn.unlink()
    return bool(world.told((folder / RESUME).exists())[0])
