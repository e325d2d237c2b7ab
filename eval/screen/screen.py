"""Ablations of training: variants of a recipe, several seeds of each, every run in its own process.

A folder holds a run folder `NAME/SEED` for each run. A run with a score is not run again. Its score counts in every
later screen of that folder whose variant of that name has the same recipe. All variants are trained with one seed
before the next seed, so that a stopped screen has results for each variant.

Runs that are capped by steps may share a device: their losses are comparable. Their times are not, and are left out.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from codec.console import Advance, ignore_progress, notes
from codec.devices import visible_gpus
from codec.errors import CodecError
from codec.files import read_bytes
from codec.processes import child_environment
from eval.score.windows import Policy
from eval.screen.run import SCORE
from eval.screen.variants import BASE
from trainer.optim.schedule import phases
from trainer.recipe import RECIPE, Recipe
from trainer.run.log import read_metrics
from trainer.run.loop import interrupts

OUTPUT = "output.txt"
"""Output of a run's process, in its folder."""

SHARED = "shared"
"""An empty file in the folder of a run that shared its device, or the host's cores, with others."""

POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Run:
    """A variant under one seed; `seed` counts from 0 and is added to both seeds of the recipe."""

    variant: str
    seed: int
    recipe: Recipe

    @property
    def name(self) -> str:
        """Return the path of the run in the screen's folder."""
        return f"{self.variant}/{self.seed}"


@dataclass(frozen=True)
class Result:
    """A finished run: the fields of `eval.screen.run.SCORE`, and its `metrics` (`trainer.run.log.METRICS`).

    `seconds` is None for a run that shared its device.
    """

    variant: str
    seed: int
    bpb_flat: float
    bpb_document: float
    parameters: int
    steps: int
    train_tokens: int
    seconds: float | None
    metrics: list[dict[str, Any]]

    def bpb(self, policy: Policy) -> float:
        """Return the bits per byte under `flat` or `document`."""
        return self.bpb_document if policy is Policy.DOCUMENT else self.bpb_flat


@dataclass(frozen=True)
class Outcome:
    """The results of a screen.

    Attributes:
        results: of this screen and of earlier screens in its folder.
        failed: reasons of this screen's failed runs, by name.
        interrupted: whether an interrupt left runs undone.
    """

    results: list[Result]
    failed: dict[str, str]
    interrupted: bool = False


def make_plan(variants: Mapping[str, Recipe], seeds: int, base_seeds: int | None = None) -> list[Run]:
    """Return every variant with every seed, seed by seed.

    Args:
        variants: recipes by name, the recipe itself included.
        seeds: of each variant.
        base_seeds: of the recipe itself; by default `seeds`.

    Raises:
        CodecError: a recipe that scores no validation tokens.
    """
    for name, recipe in variants.items():
        if not recipe.train.val_tokens:
            raise CodecError(f"variant {name}: train.val_tokens is 0; set the number of tokens to score")
    counts = {name: (base_seeds or seeds) if name == BASE else seeds for name in variants}
    return [
        Run(name, seed, _seeded(recipe, seed))
        for seed in range(max(counts.values()))
        for name, recipe in variants.items()
        if seed < counts[name]
    ]


def scored_runs(folder: Path) -> list[tuple[str, int]]:
    """Return variant and seed of each run in `folder` that has a score."""
    found = [path.parent for path in sorted(folder.glob(f"*/*/{SCORE}"))]
    return [(run.parent.name, int(run.name)) for run in found if run.name.isdecimal()]


def with_earlier(plan: Sequence[Run], variants: Mapping[str, Recipe], folder: Path) -> tuple[list[Run], list[str]]:
    """Return the plan with all comparable scored runs of `folder`, seed by seed, and the names of the others.

    A scored run is comparable if one of `variants` has its recipe under its seed.
    """
    runs = {run.name: run for run in plan}
    strangers = []
    for variant, seed in scored_runs(folder):
        name = f"{variant}/{seed}"
        if name in runs:
            continue
        recipe = _seeded(variants[variant], seed) if variant in variants else None
        if recipe and recipe == _read_recipe(folder / name):
            runs[name] = Run(variant, seed, recipe)
        else:
            strangers.append(name)
    order = list(variants)
    return sorted(runs.values(), key=lambda run: (run.seed, order.index(run.variant))), strangers


def _seeded(recipe: Recipe, seed: int) -> Recipe:
    train = replace(recipe.train, seed=recipe.train.seed + seed)
    return replace(recipe, train=train, data=replace(recipe.data, seed=recipe.data.seed + seed))


def devices() -> list[str]:
    """Return the values of CUDA_VISIBLE_DEVICES that pin a process to one GPU; `[""]` on a machine without GPUs."""
    return visible_gpus() or [""]


def make_slots(plan: Sequence[Run], places: Sequence[str], jobs: int | None) -> list[str]:
    """Return the device of each of the runs at a time: `places` (see `devices`) in turn, by default each once.

    Raises:
        CodecError: more runs than devices, and one run is capped by the clock.
    """
    timed = [run.variant for run in plan if run.recipe.train.seconds]
    if jobs and jobs > len(places) and timed:
        raise CodecError(
            f"{jobs} runs at a time on {len(places)} devices, but {timed[0]} is capped by the clock: sharing a device "
            "would cost it steps; pass fewer --jobs, or train.seconds=0 and train.iterations"
        )
    return [places[n % len(places)] for n in range(jobs or len(places))]


def run_plan(
    plan: Sequence[Run],
    folder: Path,
    slots: Sequence[str],
    advance: Advance = ignore_progress,
    keep: Callable[[Outcome], None] = lambda outcome: None,
    shown: Sequence[Run] | None = None,
) -> Outcome:
    """Train and score all runs without a score, one at a time in each of `slots` (see `make_slots`).

    A failing run does not stop the others. An interrupt (SIGINT or SIGTERM) ends the active runs, with a checkpoint
    each.

    Args:
        plan: the runs, in order.
        folder: of the screen.
        slots: a device for each run at a time.
        advance: called with 1 for every run.
        keep: called with the outcome so far whenever a run has ended, so that a kill loses only the active runs.
        shown: the runs of the outcome, in order, as far as they have a score (see `with_earlier`); None: the plan.

    Raises:
        CodecError: `folder` holds a run of another recipe.
    """
    shown = plan if shown is None else shown
    for run in plan:
        _check_recipe(run, folder / run.name)
    waiting = sorted((run for run in plan if not _has_score(run, folder)), key=_turn)
    advance(len(plan) - len(waiting))
    failed: dict[str, str] = {}
    flying: dict[int, tuple[Run, subprocess.Popen[bytes]]] = {}
    with interrupts() as interrupt:
        try:
            while (waiting or flying) and not interrupt.is_set():
                for slot in [slot for slot in range(len(slots)) if slot not in flying][: len(waiting)]:
                    run = waiting.pop(0)
                    flying[slot] = run, _start(run, folder / run.name, slots, slot)
                time.sleep(POLL_SECONDS)
                for slot, (run, process) in list(flying.items()):
                    if process.poll() is None:
                        continue
                    del flying[slot]
                    advance(1)
                    if process.returncode:
                        failed[run.name] = _last_line(folder / run.name / OUTPUT, process.returncode)
                        notes.print(f"{run.name}: {failed[run.name]}")
                    keep(_outcome(shown, folder, failed))
        finally:
            for _, process in flying.values():
                process.terminate()
            for _, process in flying.values():
                process.wait()
    return replace(_outcome(shown, folder, failed), interrupted=bool(waiting or flying))


def read_result(run: Run, folder: Path) -> Result:
    """Read the result of a finished run from its folder."""
    found = json.loads((folder / SCORE).read_text())
    if (folder / SHARED).exists():
        found["seconds"] = None
    return Result(run.variant, run.seed, **found, metrics=read_metrics(folder))


def _outcome(shown: Sequence[Run], folder: Path, failed: Mapping[str, str]) -> Outcome:
    return Outcome([read_result(run, folder / run.name) for run in shown if _has_score(run, folder)], dict(failed))


def _has_score(run: Run, folder: Path) -> bool:
    return (folder / run.name / SCORE).exists()


def _turn(run: Run) -> tuple[int, bool, int]:
    """Return the sort key of a seed's runs: the recipe itself first, for comparisons, then runs that compile long."""
    return run.seed, run.variant != BASE, -len(phases(run.recipe))


def _check_recipe(run: Run, folder: Path) -> None:
    path = folder / RECIPE
    if path.exists() and _read_recipe(folder) != run.recipe:
        raise CodecError(f"{path} is not the recipe that {run.name} has now; choose another folder or remove this run")


def _read_recipe(folder: Path) -> Recipe | None:
    """Return the recipe of a run's folder; None without a readable recipe."""
    try:
        return Recipe.from_dict(json.loads(read_bytes(folder / RECIPE, "recipe")))
    except ValueError:
        return None


def _start(run: Run, folder: Path, slots: Sequence[str], slot: int) -> "subprocess.Popen[bytes]":
    """Start the process of a run, in its own session, so that only this process passes on a Ctrl-C.

    The slots' processes divide the cores, unless the environment has limits already.
    """
    folder.mkdir(parents=True, exist_ok=True)
    environment = child_environment()
    if slots[slot]:
        environment["CUDA_VISIBLE_DEVICES"] = slots[slot]
    if len(slots) > 1:
        share = str(max(1, (os.cpu_count() or 1) // len(slots)))
        for limit in ("TORCHINDUCTOR_COMPILE_THREADS", "OMP_NUM_THREADS"):
            environment.setdefault(limit, share)
    if len(set(slots)) < len(slots):
        (folder / SHARED).touch()
    with (folder / OUTPUT).open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "eval.screen.run", str(folder)],
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
