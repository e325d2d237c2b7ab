"""Several training runs side by side: their losses in bits per byte, which do not depend on the vocabulary."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from codec.errors import CodecError, FormatError
from eval.tables import markdown
from trainer.run.log import METRICS, read_metrics

NOTED = ("step", "seconds", "tokens", "tokens_per_second", "train_loss", "train_bpb")
"""Fields of every line of a step."""


@dataclass(frozen=True)
class Summary:
    """The state of a run: the fields of its last step, and its final scores.

    `tokens_per_second` is that of the whole run and `mfu` its mean over the time, None without a GPU whose peak is
    known. `peak_memory_bytes` is of the leading process's GPU. Losses are nats per token; `train_loss` and `train_bpb`
    are those of the last batch. `val_loss` and `val_bpb` are None if no validation tokens were scored.
    """

    run: str
    steps: int
    tokens: int
    seconds: float
    tokens_per_second: float
    mfu: float | None
    peak_memory_bytes: int | None
    train_loss: float
    train_bpb: float
    val_loss: float | None
    val_bpb: float | None


@dataclass(frozen=True)
class Trained:
    """A run: the seconds, tokens and bits per byte of its logged training batches, float64 [N] each."""

    seconds: NDArray[np.float64]
    tokens: NDArray[np.float64]
    bpb: NDArray[np.float64]
    summary: Summary


def read_runs(folders: Sequence[Path]) -> list[Trained]:
    """Read runs; `names_of` gives their names.

    Raises:
        CodecError: a folder is named twice.
        FormatError: a folder is no run, made no step, or lacks a field of the current log.
    """
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise CodecError("a run is named twice; pass each once")
    return [_read_run(folder, name) for folder, name in zip(folders, names_of(folders), strict=True)]


def names_of(folders: Sequence[Path]) -> list[str]:
    """Return the names of folders, or their whole paths if two have the same name."""
    short = [folder.resolve().name for folder in folders]
    return short if len(set(short)) == len(short) else [str(folder) for folder in folders]


def _read_run(folder: Path, name: str) -> Trained:
    lines = read_metrics(folder)
    steps = [line for line in lines if "train_loss" in line]
    if not steps:
        raise FormatError(f"run {folder}: no steps in {METRICS}; pass folders that `underpar train` made")
    for line in steps:
        if wrong := [key for key in NOTED if not isinstance(line.get(key), int | float)]:
            raise FormatError(
                f"run {folder}: {', '.join(wrong)} missing from step {line.get('step')} in {METRICS}; an older version "
                "made it: train again"
            )
    seconds, tokens, bpb = (
        np.array([line[key] for line in steps], float) for key in ("seconds", "tokens", "train_bpb")
    )
    last, scored = steps[-1], next((line for line in lines if line.get("val_bpb") is not None), {})
    summary = Summary(
        run=name,
        steps=last["step"],
        tokens=last["tokens"],
        seconds=last["seconds"],
        tokens_per_second=last["tokens_per_second"],
        mfu=_mean_mfu([line.get("mfu") for line in steps], np.diff(seconds, prepend=0.0)),
        peak_memory_bytes=max(line.get("peak_memory_bytes") or 0 for line in steps) or None,
        train_loss=last["train_loss"],
        train_bpb=last["train_bpb"],
        val_loss=scored.get("val_loss"),
        val_bpb=scored.get("val_bpb"),
    )
    return Trained(seconds, tokens, bpb, summary)


def _mean_mfu(values: Sequence[float | None], lengths: NDArray[np.float64]) -> float | None:
    """Return the mean of the known values, each weighted by the seconds of its measurement."""
    known = [(value, length) for value, length in zip(values, lengths.tolist(), strict=True) if value is not None]
    total = sum(length for _, length in known)
    return sum(value * length for value, length in known) / total if total else None


def as_json(runs: Sequence[Trained]) -> dict[str, Any]:
    """Return the fields of every run's `Summary` under `runs`."""
    return {"runs": [asdict(run.summary) for run in runs]}


HEADS = ["run", "steps", "tokens", "seconds", "tokens/s", "MFU", "memory", "loss", "bpb", "val loss", "val bpb"]
"""Heads of the columns of `cells`."""


def cells(run: Trained) -> list[str]:
    """Format a run for people; unknown values are empty."""
    s = run.summary
    memory = "" if s.peak_memory_bytes is None else f"{s.peak_memory_bytes / 2**30:.1f} GiB"
    mfu = "" if s.mfu is None else f"{s.mfu:.1%}"
    losses = ["" if v is None else f"{v:.4f}" for v in (s.train_loss, s.train_bpb, s.val_loss, s.val_bpb)]
    speed = f"{s.tokens_per_second:,.0f}"
    return [s.run, f"{s.steps:,}", f"{s.tokens:,}", f"{s.seconds:,.1f}", speed, mfu, memory, *losses]


def files(runs: Sequence[Trained]) -> dict[str, bytes]:
    """Return the tables by file name."""
    table = markdown(HEADS, [cells(run) for run in runs])
    return {"runs.json": json.dumps(as_json(runs), indent=1).encode(), "runs.md": table.encode()}
