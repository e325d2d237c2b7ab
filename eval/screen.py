"""Ablations of training: variants of a recipe, several seeds of each, every run in a process of its own.

A folder holds a run folder `NAME/SEED` for each run; one with a score is not run again. All variants are trained with
one seed before the next, so that a screen that was stopped says something about each.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import codec
from codec.console import Advance, ignore_progress, notes
from codec.devices import visible_gpus
from codec.errors import CodecError
from codec.files import read_bytes
from codec.windows import Policy
from eval.screen_run import SCORE, read_metrics
from trainer.loop import interrupts
from trainer.recipe import RECIPE, Recipe

OUTPUT = "output.txt"
"""What a run's process printed, in its folder."""

POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Run:
    """A variant under one seed. `seed` counts from 0 and is added to both seeds of the recipe."""

    variant: str
    seed: int
    recipe: Recipe

    @property
    def name(self) -> str:
        return f"{self.variant}/{self.seed}"


@dataclass(frozen=True)
class Result:
    """A finished run: the fields of `eval.screen_run.SCORE`, and what its journal says (`trainer.journal.METRICS`)."""

    variant: str
    seed: int
    bpb_flat: float
    bpb_document: float
    parameters: int
    steps: int
    train_tokens: int
    seconds: float
    metrics: list[dict[str, Any]]

    def bpb(self, policy: Policy) -> float:
        """Bits per byte under `flat` or `document`."""
        return self.bpb_document if policy is Policy.DOCUMENT else self.bpb_flat


@dataclass(frozen=True)
class Outcome:
    """Results in the plan's order; why other runs have none, by name."""

    results: list[Result]
    failed: dict[str, str]


def make_plan(variants: Mapping[str, Recipe], seeds: int) -> list[Run]:
    """Every variant with every seed, seed by seed.

    Raises:
        CodecError: a recipe that scores no validation tokens.
    """
    for name, recipe in variants.items():
        if not recipe.train.val_tokens:
            raise CodecError(f"variant {name}: train.val_tokens is 0; say how many tokens are to be scored")
    return [Run(name, seed, _seeded(recipe, seed)) for seed in range(seeds) for name, recipe in variants.items()]


def _seeded(recipe: Recipe, seed: int) -> Recipe:
    train = replace(recipe.train, seed=recipe.train.seed + seed)
    return replace(recipe, train=train, data=replace(recipe.data, seed=recipe.data.seed + seed))


def devices() -> list[str]:
    """What CUDA_VISIBLE_DEVICES may be to pin a process to one device: an entry for each GPU; one, "", without any."""
    return visible_gpus() or [""]


def run_plan(plan: Sequence[Run], folder: Path, places: Sequence[str], advance: Advance = ignore_progress) -> Outcome:
    """Train and score all runs that have no score yet, one at a time on each of `places` (see `devices`).

    A run that fails costs no other. An interrupt (SIGINT or SIGTERM) ends the runs that go on, with a checkpoint each.

    Args:
        advance: told 1 for every run.

    Raises:
        CodecError: `folder` holds a run of another recipe.
        KeyboardInterrupt: on an interrupt.
    """
    for run in plan:
        _check_recipe(run, folder / run.name)
    waiting = [run for run in plan if not (folder / run.name / SCORE).exists()]
    advance(len(plan) - len(waiting))
    failed: dict[str, str] = {}
    flying: dict[str, tuple[Run, subprocess.Popen[bytes]]] = {}
    with interrupts() as interrupt:
        try:
            while (waiting or flying) and not interrupt.is_set():
                for place in [place for place in places if place not in flying][: len(waiting)]:
                    run = waiting.pop(0)
                    flying[place] = run, _start(run, folder / run.name, place)
                time.sleep(POLL_SECONDS)
                for place, (run, process) in list(flying.items()):
                    if process.poll() is None:
                        continue
                    del flying[place]
                    advance(1)
                    if process.returncode:
                        failed[run.name] = _last_line(folder / run.name / OUTPUT, process.returncode)
                        notes.print(f"{run.name}: {failed[run.name]}", markup=False, highlight=False, soft_wrap=True)
        finally:
            for _, process in flying.values():
                process.terminate()
            for _, process in flying.values():
                process.wait()
        if interrupt.is_set():
            raise KeyboardInterrupt
    return Outcome([read_result(run, folder / run.name) for run in plan if run.name not in failed], failed)


def read_result(run: Run, folder: Path) -> Result:
    """What a finished run left in its folder."""
    return Result(run.variant, run.seed, **json.loads((folder / SCORE).read_text()), metrics=read_metrics(folder))


def _check_recipe(run: Run, folder: Path) -> None:
    path = folder / RECIPE
    if path.exists() and Recipe.from_dict(json.loads(read_bytes(path, "recipe"))) != run.recipe:
        raise CodecError(f"{path} is not the recipe that {run.name} has now; choose another folder or remove this run")


def _start(run: Run, folder: Path, place: str) -> "subprocess.Popen[bytes]":
    """The process of a run, in a session of its own: a Ctrl-C reaches it from here alone."""
    folder.mkdir(parents=True, exist_ok=True)
    source = [str(Path(codec.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, source))}
    if place:
        environment["CUDA_VISIBLE_DEVICES"] = place
    with (folder / OUTPUT).open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "eval.screen_run", str(folder)],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    assert process.stdin
    with process.stdin as stream:
        stream.write(json.dumps(run.recipe.to_dict()).encode())
    return process


def _last_line(path: Path, status: int) -> str:
    lines = path.read_text(errors="replace").split("\n")
    return next((line for line in reversed(lines) if line.strip()), f"ended with status {status}")
