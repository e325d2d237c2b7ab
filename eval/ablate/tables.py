"""The results of an ablation: bytes at equal distortion and distortion at equal bytes, as rows for JSON and CSV.

A peer has a curve of its documented form, with a scale for all steps. If the embedding's scale was swept, too, the peer
has a second curve, `re-tuned`: the lower hull of all its points.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any, Literal

import numpy as np

from eval.ablate.ablate import Measured, Outcome
from eval.ablate.curves import Curve, Sample, at_bytes, at_distortion, bytes_ratio, curve, distortion_ratio, envelope
from eval.ablate.divergence import Ruler
from eval.ablate.subject import Subject

RETUNED = ", re-tuned"

Measure = Literal["kl", "tax", "relative_error"]

REFERENCES = ("sdclip+brotli", "int6+zstd", "int8+zlib")
"""Peers whose documented form is the reference of comparisons: the first peer that was measured."""


def summary(subject: Subject, ruler: Ruler | None, outcome: Outcome, sizes: Sequence[int]) -> dict[str, Any]:
    """Return everything about a run but the sums by window, as JSON.

    Fields: `parameters`, `companion_bytes` (config and tokenizer, which every size includes), `tokens`, `windows`,
    `text_bytes`, `bpb_float`; `points`; `equal_distortion` and `equal_bytes`, the rows of the functions of these names;
    `skipped` and `failed`, reasons by point.
    """
    text: dict[str, Any] = {}
    if ruler:
        text = {"tokens": ruler.tokens, "windows": ruler.windows, "text_bytes": ruler.text_bytes}
        text["bpb_float"] = float(ruler.reference_nats.sum()) / math.log(2) / ruler.text_bytes
    return {
        "parameters": subject.parameters,
        "companion_bytes": subject.companions,
        **text,
        "points": [row(point) for point in outcome.points],
        "equal_distortion": equal_distortion(outcome.points),
        "equal_bytes": equal_bytes(outcome.points, sizes),
        "skipped": outcome.skipped,
        "failed": outcome.failed,
    }


def row(point: Measured) -> dict[str, Any]:
    """Return a point as one flat row, without its sums by window."""
    values = asdict(point)
    return {**values.pop("point"), **{k: v for k, v in values.items() if not k.startswith("windows")}}


def measure_of(points: Sequence[Measured]) -> Measure:
    """Return the measure of these points' distortion."""
    return "relative_error" if any(point.kl is None for point in points) else "kl"


def strategy_curves(points: Sequence[Measured], measure: Measure) -> dict[str, Curve]:
    """Return a curve of each strategy, and of packs of one name, with at least two points, in the order of the plan."""
    names = dict.fromkeys(p.point.name for p in points if p.point.kind != "peer")
    found = (curve(n, _samples((p for p in points if p.point.name == n), measure)) for n in names)
    return {c.name: c for c in found if c}


def peer_curves(points: Sequence[Measured], measure: Measure) -> dict[str, Curve]:
    """Return the curves of each peer: its documented form, and `re-tuned` if the embedding's scale was swept."""
    found: dict[str, Curve] = {}
    for name in dict.fromkeys(p.point.name for p in points if p.point.kind == "peer"):
        own = [p for p in points if p.point.name == name]
        documented = [p for p in own if p.point.embedding == 1.0]
        if plain := curve(name, _samples(documented, measure)):
            found[name] = plain
        if len(documented) < len(own) and (tuned := envelope(name + RETUNED, _samples(own, measure))):
            found[tuned.name] = tuned
    return found


def reference(points: Sequence[Measured]) -> Measured | None:
    """Return the point of a documented peer whose distortion is the level of all comparisons."""
    documented = {p.point.name: p for p in points if p.point.scale == p.point.embedding == 1.0}
    return next((documented[name] for name in REFERENCES if name in documented), None)


def equal_distortion(points: Sequence[Measured]) -> list[dict[str, Any]]:
    """Return bytes of every strategy over those of every peer, at the distortion of the peer's documented points.

    Fields: `measure` (`kl`, `tax` or `relative_error`), `level` (nats a token, bits per byte, or none), `reference`
    (whether the level is that of the peer at scale 1), `strategy`, `peer`, `strategy_bytes`, `peer_bytes`, `ratio`,
    `ratio_error` (standard error, paired by window), `extrapolated`.
    """
    rows = []
    for measure in _measures(points):
        strategies, peers = strategy_curves(points, measure), peer_curves(points, measure)
        for peer in peers.values():
            name = peer.name.removesuffix(RETUNED)
            levels = [p for p in points if p.point.name == name and p.point.embedding == 1.0]
            for level, at in ((_value(p, measure), p.point.scale) for p in levels):
                for strategy in strategies.values() if level > 0 else ():
                    ratio = bytes_ratio(strategy, peer, level)
                    rows.append(
                        {
                            "measure": measure,
                            "level": level,
                            "reference": at == 1.0,
                            "strategy": strategy.name,
                            "peer": peer.name,
                            "strategy_bytes": at_distortion(strategy, level).bytes,
                            "peer_bytes": at_distortion(peer, level).bytes,
                            "ratio": ratio.value,
                            "ratio_error": ratio.error,
                            "extrapolated": ratio.extrapolated,
                        }
                    )
    return rows


def equal_bytes(points: Sequence[Measured], sizes: Sequence[int]) -> list[dict[str, Any]]:
    """Return the distortion of every strategy over that of every peer, at each size in bytes.

    Fields: `measure`, `bytes`, `strategy`, `peer`, `strategy_distortion`, `peer_distortion`, `ratio`, `ratio_error`,
    `extrapolated`, as in `equal_distortion`.
    """
    rows = []
    for measure in _measures(points):
        strategies, peers = strategy_curves(points, measure), peer_curves(points, measure)
        for size, peer, strategy in ((b, p, s) for b in sizes for p in peers.values() for s in strategies.values()):
            ratio = distortion_ratio(strategy, peer, size)
            rows.append(
                {
                    "measure": measure,
                    "bytes": size,
                    "strategy": strategy.name,
                    "peer": peer.name,
                    "strategy_distortion": at_bytes(strategy, size).distortion,
                    "peer_distortion": at_bytes(peer, size).distortion,
                    "ratio": ratio.value,
                    "ratio_error": ratio.error,
                    "extrapolated": ratio.extrapolated,
                }
            )
    return rows


def _measures(points: Sequence[Measured]) -> tuple[Measure, ...]:
    return ("kl", "tax") if measure_of(points) == "kl" else ("relative_error",)


def _value(point: Measured, measure: Measure) -> float:
    value = getattr(point, measure)
    return math.nan if value is None else value


def _samples(points: Iterable[Measured], measure: Measure) -> list[Sample]:
    windows = {"kl": "windows_kl", "tax": "windows_tax"}.get(measure)
    found = []
    for point in points:
        sums = np.array(getattr(point, windows)) if windows else None
        found.append(Sample(point.bytes, _value(point, measure), sums))
    return found
