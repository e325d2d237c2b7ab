"""The log of a run: lines like the challenge's, metrics as JSON lines, a bar on a terminal."""

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from codec.console import Advance, notes, progress
from codec.errors import FormatError
from codec.files import atomic_write, read_bytes
from trainer.distributed import World
from trainer.model.flops import flops_per_token, utilisation
from trainer.optim.schedule import Phase
from trainer.recipe import Recipe
from trainer.run.device import peak_memory
from trainer.run.state import State

LOG = "train.log"
METRICS = "metrics.jsonl"


class RunLog:
    """The writer of a run's `train.log` and `metrics.jsonl`; made by `open_log`."""

    def __init__(
        self,
        recipe: Recipe,
        world: World,
        bytes_per_token: Sequence[float],
        log: IO[str],
        metrics: IO[str],
        advance: Advance,
    ):
        self.recipe, self.train, self.world = recipe, recipe.train, world
        self.bytes_per_token = bytes_per_token
        self.log, self.metrics, self.advance = log, metrics, advance
        self.shown = 0.0
        self.noted = 0, 0.0  # steps and seconds at the last line

    def line(self, text: str) -> None:
        """Write one line for people."""
        notes.print(text)
        print(text, file=self.log, flush=True)

    def record(self, **values: Any) -> None:
        """Write one line for programs."""
        print(json.dumps(values), file=self.metrics, flush=True)

    def due(self, step: int) -> bool:
        """Return whether the loss of step `step` (from 1) is logged: the first ten steps, then every `log_every`."""
        return step <= 10 or step % self.train.log_every == 0

    def move_bar(self, state: State) -> None:
        """Move the progress bar to the state of the run."""
        now = state.elapsed if self.train.seconds else float(state.step)
        self.advance(now - self.shown)
        self.shown = now

    def loss(self, state: State, phase: Phase, train_loss: float, lr_scale: float) -> None:
        """Log the mean loss in nats of the last step's batch, also as bits per byte.

        Bits per byte take the batch's tokens to have the mean length of the run's text. Tokens a second are those of
        the run; seconds a step and MFU are those since the last line.
        """
        step, elapsed, speed = state.step, state.elapsed, state.tokens / state.elapsed
        (before, begun), self.noted = self.noted, (step, elapsed)
        step_seconds = (elapsed - begun) / max(1, step - before)
        work = phase.batch_tokens * flops_per_token(self.recipe.model, phase.window, phase.loops)
        mfu = utilisation(work / step_seconds / self.world.size, self.world.device) if step_seconds else None
        self.line(
            f"step:{step}/{self.train.iterations or '-'} train_loss:{train_loss:.4f} train_time:{1000 * elapsed:.0f}ms "
            f"step_avg:{1000 * elapsed / step:.2f}ms tok/s:{speed:.0f}" + (f" mfu:{mfu:.1%}" if mfu else "")
        )
        self.record(
            step=step,
            seconds=elapsed,
            train_loss=train_loss,
            train_bpb=train_loss / math.log(2) / self.bytes_per_token[phase.late],
            lr_scale=lr_scale,
            tokens=state.tokens,
            tokens_per_second=speed,
            step_seconds=step_seconds,
            mfu=mfu,
            peak_memory_bytes=peak_memory(self.world.device),
        )


class SilentLog(RunLog):
    """The log of a process that does not lead: all methods do nothing."""

    def __init__(self, recipe: Recipe):
        self.train = recipe.train

    def line(self, text: str) -> None:
        pass

    def record(self, **values: Any) -> None:
        pass

    def loss(self, state: State, phase: Phase, train_loss: float, lr_scale: float) -> None:
        pass

    def move_bar(self, state: State) -> None:
        pass


@contextmanager
def open_log(
    folder: Path, recipe: Recipe, state: State, world: World, bytes_per_token: Sequence[float]
) -> Iterator[RunLog]:
    """Open the log of a run at `state`; lines of a killed run beyond that state are dropped.

    A process that does not lead gets a `SilentLog`.

    Args:
        folder: of the run.
        recipe: of the run.
        state: the state to start or continue from.
        world: the processes of the run.
        bytes_per_token: of the training text, and of the late text.
    """
    train = recipe.train
    if not world.leads:
        yield SilentLog(recipe)
        return
    folder.mkdir(parents=True, exist_ok=True)
    if state.step:
        keep_until(folder / METRICS, state.step)
    if train.seconds:
        total, unit = train.seconds, ""
    else:
        total, unit = float(train.iterations), "step"
    mode = "a" if state.step else "w"
    with (
        (folder / LOG).open(mode) as log,
        (folder / METRICS).open(mode) as metrics,
        progress("train", total, unit) as advance,
    ):
        journal = RunLog(recipe, world, bytes_per_token, log, metrics, advance)
        journal.noted = state.step, state.elapsed
        yield journal


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Return the lines of a run's `metrics.jsonl`, without a truncated last line; none if there is no such file.

    Raises:
        FormatError: a line is no JSON object.
    """
    path = folder / METRICS
    if not path.exists():
        return []
    lines = read_bytes(path, "metrics").splitlines(keepends=True)
    try:
        found = [json.loads(line) for line in lines if line.endswith(b"\n")]
    except ValueError as error:
        raise FormatError(f"metrics {path}: not JSON Lines ({error})") from error
    if wrong := next((value for value in found if not isinstance(value, dict)), None):
        raise FormatError(f"metrics {path}: {wrong!r} among its lines, expected objects")
    return found


def keep_until(path: Path, step: int) -> None:
    """Drop the lines of later steps, and a truncated last line, from a metrics file."""
    kept = []
    for line in path.read_bytes().splitlines(keepends=True) if path.exists() else []:
        if line.endswith(b"\n") and json.loads(line).get("step", 0) <= step:
            kept.append(line)
    with atomic_write(path) as file:
        file.writelines(kept)
