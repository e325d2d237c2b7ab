"""The training loop: from a recipe to a run folder with the trained model, over one process or several.

    torchrun --nproc-per-node=8 -m underpar train record -o runs/record

A run folder holds `model.safetensors` and `tokenizer.model` when the run is done, `resume.pt` while it goes on, and
`train.log`, `metrics.jsonl` and `recipe.json`.
"""

import json
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from codec.checkpoint import WEIGHTS, save_checkpoint
from codec.console import CheckFailed
from codec.errors import CodecError, FormatError
from codec.files import atomic_write
from trainer.data import Batches
from trainer.distributed import World, join
from trainer.journal import METRICS, Journal, open_journal
from trainer.model import GPT
from trainer.optim import Optimizers
from trainer.qat import quantized_loss, rounding_of
from trainer.recipe import RECIPE, Recipe
from trainer.resume import RESUME, State, copy_of
from trainer.schedule import lr_scale, muon_momentum, over, quantizes
from trainer.shards import read_shard
from trainer.source import Source, open_source

Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Losses:
    """What is minimised: as long as no quantizer is seen, and then. The same where the recipe has no quantizer."""

    plain: Loss
    quantized: Loss


VAL_TOKENS = 1 << 14
"""Tokens that validation looks at together: their logits over 8,192 tokens of vocabulary take 512 MiB."""


@dataclass(frozen=True)
class Outcome:
    """How a run ended. `train_loss` (nats, of the last step's batch) is None if no step was made."""

    folder: Path
    steps: int
    tokens: int
    seconds: float
    train_loss: float | None
    val_loss: float | None
    interrupted: bool


def train(recipe: Recipe, folder: str | Path, resume: bool = False) -> Outcome:
    """Train the model of a recipe into a run folder. Every process of a run calls this.

    An interrupt (SIGINT or SIGTERM) ends the run with a checkpoint after the step in progress, for `resume` to go on.

    Args:
        resume: go on from the checkpoint in `folder`; from the beginning where the run was killed before its first.

    Raises:
        CodecError: `folder` already holds a run and `resume` is off, or is finished, or the recipe does not fit the
            data or the number of processes.
        CheckFailed: the loss became infinite or NaN.
    """
    folder = Path(folder)
    with join() as world:
        goes_on = check_folder(folder, resume, world)
        if world.leads:
            with atomic_write(folder / RECIPE) as file:
                file.write(json.dumps(recipe.to_dict(), indent=1).encode())
        source = open_source(recipe, folder, world)
        batches = open_batches(recipe, source, world)
        state = State.start(recipe, world)
        losses = losses_of(state.model, recipe, world)
        if world.device.type == "cuda":
            prime(state, losses, batches, recipe, world)
        if goes_on:
            state.restore(folder, recipe, world.device)
        with open_journal(folder, recipe.train, state.step, world.leads) as journal:
            journal.line(f"model_params:{sum(p.numel() for p in state.model.parameters())}")
            journal.line(f"world_size:{world.size} grad_accum_steps:{micro_batches(recipe, world)}")
            train_loss, interrupted = run(state, losses, batches, recipe, world, folder, journal)
            if world.device.type == "cuda":
                journal.line(f"peak memory allocated: {torch.cuda.max_memory_allocated(world.device) >> 20} MiB")
            val_loss = None if interrupted else finish(state, source, recipe, world, folder, journal)
    tokens = state.step * recipe.train.batch_tokens
    return Outcome(folder, state.step, tokens, state.elapsed, train_loss, val_loss, interrupted)


def losses_of(model: GPT, recipe: Recipe, world: World) -> Losses:
    """The losses of a recipe, compiled where they run on a GPU. Raises CodecError as `trainer.qat.rounding_of` does."""
    quantized = quantized_loss(model, rounding_of(model, recipe.train)) if recipe.train.qat else model.loss
    if world.device.type != "cuda":
        return Losses(model.loss, quantized)
    plain = torch.compile(model.loss, dynamic=False)
    return Losses(plain, torch.compile(quantized, dynamic=False) if recipe.train.qat else plain)


def run(
    state: State, losses: Losses, batches: Batches, recipe: Recipe, world: World, folder: Path, journal: Journal
) -> tuple[float | None, bool]:
    """The loop itself: steps until a cap is reached or an interrupt comes.

    Returns:
        the loss of the last step, and whether an interrupt ended the loop.
    """
    plan, saved = recipe.train, state.elapsed
    begun = time.perf_counter() - state.elapsed
    wait = throttle(world.device)
    with interrupts() as interrupt:
        value, done, asked = None, over(plan, state.step, state.elapsed), 0.0
        while not done and not asked:
            scale = lr_scale(plan, state.step, state.elapsed)
            loss = losses.quantized if quantizes(plan, state.step, state.elapsed) else losses.plain
            batch_loss = descend(state, loss, batches, state.step, recipe, world, scale)
            state.step += 1
            if plan.ema_decay:
                state.update_average(plan.ema_decay)
            wait()
            state.elapsed, asked = world.told(time.perf_counter() - begun, interrupt.is_set())
            done = over(plan, state.step, state.elapsed)
            if done or asked or journal.due(state.step):
                value = world.total(batch_loss).item() / world.size  # the device has finished once this is known
                state.elapsed = world.told(time.perf_counter() - begun)[0]
                journal.loss(state.step, state.elapsed, value, scale)
                if not math.isfinite(value):
                    raise CheckFailed(f"training diverged: loss {value} at step {state.step}; lower the learning rates")
            journal.move_bar(state.step, state.elapsed)
            by_time = plan.checkpoint_seconds and state.elapsed - saved >= plan.checkpoint_seconds
            by_step = plan.checkpoint_steps and state.step % plan.checkpoint_steps == 0
            if not done and (asked or by_time or by_step):
                saved = state.elapsed
                if world.leads:
                    state.save(folder, recipe)
    return value, not done


def descend(state: State, loss: Loss, batches: Batches, n: int, recipe: Recipe, world: World, scale: float) -> Tensor:
    """One optimizer step on batch `n`, learning rates times `scale`.

    Returns:
        the mean loss in nats of this process's share of the batch: a scalar on the device, not waited for.
    """
    inputs, targets = (to_device(rows, world.device) for rows in batches.batch(n))
    parts = micro_batches(recipe, world)
    total = torch.zeros((), device=world.device)
    for part_inputs, part_targets in zip(inputs.chunk(parts), targets.chunk(parts), strict=True):
        part = loss(part_inputs, part_targets) / parts
        part.backward()
        total += part.detach()
    weights = list(state.model.parameters())
    world.average_gradients(weights)
    if recipe.optim.grad_clip:
        nn.utils.clip_grad_norm_(weights, recipe.optim.grad_clip)
    state.optimizers.step(scale, muon_momentum(recipe.optim, n))
    state.model.zero_grad(set_to_none=True)
    return total


def finish(state: State, source: Source, recipe: Recipe, world: World, folder: Path, journal: Journal) -> float | None:
    """Save the model that the run was for, and return its validation loss in nats if the recipe asks for one."""
    state.model.load_state_dict(state.weights())
    val_loss = None
    if recipe.train.val_tokens:
        val_loss = validation_loss(state.model.loss, source, recipe, world)
        found = {"val_loss": val_loss}
        if recipe.train.qat:
            seen = quantized_loss(state.model, rounding_of(state.model, recipe.train))
            found["quantized_val_loss"] = validation_loss(seen, source, recipe, world)
        losses = " ".join(f"{name}:{nats:.4f}" for name, nats in found.items())
        journal.line(f"step:{state.step}/{recipe.train.iterations or '-'} {losses}")
        journal.record(step=state.step, seconds=state.elapsed, **found)
    if world.leads:
        save_checkpoint(folder, state.model.state_dict(), recipe.model, source.tokenizer)
        (folder / RESUME).unlink(missing_ok=True)
    return val_loss


def prime(state: State, losses: Losses, batches: Batches, recipe: Recipe, world: World) -> None:
    """Steps that compile and warm every kernel, and whose effect on the state is undone."""
    weights = copy_of(state.model.state_dict())
    for loss in dict.fromkeys((losses.plain, losses.quantized)):
        for n in range(recipe.train.prime_steps):
            descend(state, loss, batches, n, recipe, world, 1.0)
    state.model.load_state_dict(weights)
    state.optimizers = Optimizers(state.model, recipe.optim, world)
    torch.cuda.synchronize(world.device)


def check_folder(folder: Path, resume: bool, world: World) -> bool:
    """Whether there is a checkpoint to go on from.

    Raises:
        CodecError: `folder` holds a run that would be overwritten, or one that needs no resuming.
    """
    if world.leads and resume and (folder / WEIGHTS).exists() and not (folder / RESUME).exists():
        raise CodecError(f"run {folder}: it is finished; there is nothing to resume")
    if world.leads and not resume and any((folder / name).exists() for name in (WEIGHTS, RESUME, METRICS)):
        raise CodecError(f"run {folder}: it exists; go on with --resume or choose another folder")
    if world.leads:
        for torn in folder.glob(f".{RESUME}.*"):  # what a kill left of a checkpoint in the making
            torn.unlink()
    return bool(world.told((folder / RESUME).exists())[0])


def micro_batches(recipe: Recipe, world: World) -> int:
    """Parts of this process's share of a batch."""
    return max(1, recipe.train.micro_batches // world.size)


def open_batches(recipe: Recipe, source: Source, world: World) -> Batches:
    """This process's batches. Raises CodecError if rows cannot be shared out evenly."""
    rows, parts = recipe.train.batch_tokens // recipe.model.window, world.size * micro_batches(recipe, world)
    if rows % parts:
        raise CodecError(
            f"recipe: a batch of {rows} rows cannot be shared out to {world.size} processes with "
            f"{parts // world.size} micro-batches each; change train.batch_tokens or train.micro_batches"
        )
    return Batches(
        source.train, recipe.model.window, rows, recipe.model.vocab_size, recipe.data.seed, world.rank, world.size
    )


@torch.no_grad()
def validation_loss(loss: Callable[..., Tensor], source: Source, recipe: Recipe, world: World) -> float:
    """Mean nats per token of the first `val_tokens` targets of the validation stream, in rows without overlap.

    Args:
        loss: as `GPT.loss`.

    Raises:
        FormatError: the shards do not hold one row.
    """
    window = recipe.model.window
    parts: list[NDArray[np.uint16]] = []
    while sum(map(len, parts)) <= recipe.train.val_tokens and len(parts) < len(source.val):
        parts.append(read_shard(source.val[len(parts)]))
    stream = np.concatenate(parts)[: recipe.train.val_tokens + 1].astype(np.int64)
    count = (len(stream) - 1) // window
    if count < 1:
        raise FormatError(
            f"validation: {len(stream)} tokens, expected at least {window + 1}; raise train.val_tokens or add text"
        )
    inputs = stream[: count * window].reshape(count, window)
    targets = stream[1 : count * window + 1].reshape(count, window)
    nats = torch.zeros((), dtype=torch.float64, device=world.device)
    batch = max(1, VAL_TOKENS // window)
    for first in range(world.rank * batch, count, world.size * batch):
        rows = to_device(inputs[first : first + batch], world.device)
        wanted = to_device(targets[first : first + batch], world.device)
        nats += loss(rows, wanted, reduction="none").double().sum()
    return world.total(nats).item() / (count * window)


def to_device(rows: NDArray[np.int64], device: torch.device) -> Tensor:
    """Rows [B, T] on the device, copied without waiting where it is a GPU."""
    tensor = torch.from_numpy(np.ascontiguousarray(rows))
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def throttle(device: torch.device) -> Callable[[], None]:
    """A function to call after each step: it lets the host run one step ahead of a GPU and no further.

    So the GPU never idles, and the host's clock tells how far training is.
    """
    if device.type != "cuda":
        return lambda: None
    ends: list[torch.cuda.Event] = []

    def wait() -> None:
        ends.append(torch.cuda.Event())
        ends[-1].record()
        if len(ends) == 2:
            ends.pop(0).synchronize()

    return wait


@contextmanager
def interrupts() -> Iterator[threading.Event]:
    """An event that SIGINT and SIGTERM set, in place of what they do otherwise, while the block runs."""
    event, before = threading.Event(), {}
    with suppress(ValueError):  # raised outside the main thread, which signals do not reach
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, lambda *_: event.set())
    try:
        yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
