"""What a run tells while it goes on: lines like the challenge's, metrics as JSON lines, a bar on a terminal."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from codec.console import Advance, notes, progress
from codec.files import atomic_write
from trainer.device import peak_memory
from trainer.distributed import World
from trainer.flops import utilisation
from trainer.recipe import Recipe

LOG = "train.log"
METRICS = "metrics.jsonl"


class Journal:
    """Writes to a run's `train.log` and `metrics.jsonl`; see `open_journal`."""

    def __init__(self, recipe: Recipe, world: World, log: IO[str], metrics: IO[str], advance: Advance):
        self.train, self.model, self.world = recipe.train, recipe.model, world
        self.log, self.metrics, self.advance = log, metrics, advance
        self.shown = 0.0

    def line(self, text: str) -> None:
        """One line for people."""
        notes.print(text, markup=False, highlight=False, soft_wrap=True)
        print(text, file=self.log, flush=True)

    def record(self, **values: Any) -> None:
        """One line for programs."""
        print(json.dumps(values), file=self.metrics, flush=True)

    def due(self, step: int) -> bool:
        """Whether the loss of step `step` (from 1) is wanted: the first ten, then every `log_every`."""
        return step <= 10 or step % self.train.log_every == 0

    def move_bar(self, step: int, elapsed: float) -> None:
        """Move the progress bar to where the run is."""
        now = elapsed if self.train.seconds else float(step * self.train.batch_tokens)
        self.advance(now - self.shown)
        self.shown = now

    def loss(self, step: int, elapsed: float, train_loss: float, lr_scale: float) -> None:
        """Note the mean loss in nats of a step's batch, `elapsed` seconds into the run."""
        milliseconds, speed = 1000 * elapsed, step * self.train.batch_tokens / elapsed
        mfu = utilisation(self.model, speed, self.world.device, self.world.size)
        self.line(
            f"step:{step}/{self.train.iterations or '-'} train_loss:{train_loss:.4f} "
            f"train_time:{milliseconds:.0f}ms step_avg:{milliseconds / step:.2f}ms tok/s:{speed:.0f}"
            + (f" mfu:{mfu:.1%}" if mfu else "")
        )
        self.record(
            step=step,
            seconds=elapsed,
            train_loss=train_loss,
            lr_scale=lr_scale,
            tokens_per_second=speed,
            step_seconds=elapsed / step,
            mfu=mfu,
            peak_memory_bytes=peak_memory(self.world.device),
        )


class Silence(Journal):
    """The journal of a process that does not lead: it says nothing."""

    def __init__(self, recipe: Recipe):
        self.train = recipe.train

    def line(self, text: str) -> None:
        pass

    def record(self, **values: Any) -> None:
        pass

    def loss(self, step: int, elapsed: float, train_loss: float, lr_scale: float) -> None:
        pass

    def move_bar(self, step: int, elapsed: float) -> None:
        pass


@contextmanager
def open_journal(folder: Path, recipe: Recipe, step: int, world: World) -> Iterator[Journal]:
    """The journal of a run that has made `step` steps; what a killed run noted beyond them is dropped.

    That of a process that does not lead says nothing.
    """
    train = recipe.train
    if not world.leads:
        yield Silence(recipe)
        return
    folder.mkdir(parents=True, exist_ok=True)
    if step:
        keep_until(folder / METRICS, step)
    if train.seconds:
        total, unit = train.seconds, ""
    else:
        total, unit = float(train.iterations * train.batch_tokens), "tok"
    mode = "a" if step else "w"
    with (
        (folder / LOG).open(mode) as log,
        (folder / METRICS).open(mode) as metrics,
        progress("train", total, unit) as advance,
    ):
        yield Journal(recipe, world, log, metrics, advance)


def keep_until(path: Path, step: int) -> None:
    """Drop the lines of later steps from a metrics file, and a last line that was cut short."""
    kept = []
    for line in path.read_bytes().splitlines(keepends=True) if path.exists() else []:
        if line.endswith(b"\n") and json.loads(line).get("step", 0) <= step:
            kept.append(line)
    with atomic_write(path) as file:
        file.writelines(kept)
