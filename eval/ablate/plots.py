"""Pictures of an ablation: rate–distortion curves, and a ladder of each part's contribution in bytes."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from eval.ablate.ablate import Measured
from eval.ablate.curves import at_distortion
from eval.ablate.tables import (
    RETUNED,
    Measure,
    equal_distortion,
    measure_of,
    peer_curves,
    reference,
    strategy_curves,
)
from eval.figures import BLUE, GREEN, GREY, INK, PURPLE, STYLE, beside, new_figure

TITLES: dict[Measure, tuple[str, str]] = {
    "kl": ("Divergence from the float model", "KL(float || packed), nats per token"),
    "tax": ("What quantization costs in bits per byte", "bits per byte over the float model"),
    "relative_error": ("Error of the weights", "squared error over squared norm"),
}
"""Title and axis of each measure."""

GROUPS = (
    (("int", "sdclip", "nearest", "ternary", "binary"), GREEN),
    (("trellis",), BLUE),
    (("",), PURPLE),
)
"""Colours of strategies, by parts of their names, the first that fits: hand-set steps, a trellis, scalar."""


def pictures(points: Sequence[Measured]) -> dict[str, Figure]:
    """Draw all pictures for which there are enough points, by file name."""
    found: dict[str, Figure] = {}
    measures: tuple[Measure, ...] = ("kl", "tax") if measure_of(points) == "kl" else ("relative_error",)
    for measure in measures:
        if figure := rate_distortion(points, measure):
            found[f"rate_{measure}"] = figure
    if figure := ladder(points):
        found["ladder"] = figure
    return found


def rate_distortion(points: Sequence[Measured], measure: Measure) -> Figure | None:
    """Draw bytes against a measure on a logarithmic scale, each curve labelled; None without a curve.

    Strategies are coloured lines, peers grey lines; a re-tuned peer is dashed. Bars are standard errors.
    """
    strategies, peers = strategy_curves(points, measure), peer_curves(points, measure)
    curves = [*peers.values(), *strategies.values()]
    if not curves:
        return None
    with rc_context(STYLE):
        figure = new_figure(max(4.6, 1.2 + 0.24 * len(curves)))
        axes = figure.subplots()
        ends = []
        for one in curves:
            ours = one.name in strategies
            color = _color(one.name) if ours else GREY
            x, y = [s.bytes for s in one.samples], [s.distortion for s in one.samples]
            style: Any = (0, (4, 2)) if one.name.endswith(RETUNED) else "-"
            axes.plot(x, y, color=color, linestyle=style, marker="o", markersize=3.5, zorder=3 if ours else 2)
            for sample in one.samples:
                if sample.windows is not None and len(sample.windows) > 1:
                    share = float(np.std(sample.shares, ddof=1)) * len(sample.shares) ** 0.5
                    low, high = sample.distortion * (1 - min(share, 0.9)), sample.distortion * (1 + share)
                    axes.plot([sample.bytes] * 2, [low, high], color=color, linewidth=0.8)
            ends.append((one.name, x[-1], y[-1], color))
        widest, worst = (max(getattr(s, of) for c in curves for s in c.samples) for of in ("bytes", "distortion"))
        for point in (p for p in points if p.point.kind != "peer" and p.point.name not in strategies):
            value = getattr(point, measure)  # a point far from every curve would squeeze all curves
            if 0 < value <= 5 * worst and point.bytes <= 1.4 * widest:
                axes.plot(point.bytes, value, "D", color=_color(point.point.name), markersize=4.5)
                ends.append((point.point.name, point.bytes, value, _color(point.point.name)))
        axes.set_yscale("log")
        title, label = TITLES[measure]
        axes.set(title=title, ylabel=label, xlabel="bytes of the whole file")
        axes.xaxis.set_major_formatter(EngFormatter(sep=" ", unit="B"))
        _label_ends(axes, ends)
    return figure


def ladder(points: Sequence[Measured]) -> Figure | None:
    """Draw bytes at the distortion of the documented peer: peers, then strategies in plan order.

    Beside each bar: its bytes, the change over the reference, and the change over the strategy before. The result is
    None if no documented peer was measured.
    """
    measure = measure_of(points)
    anchor = reference(points)
    if anchor is None:
        return None
    rows = [r for r in equal_distortion(points) if r["measure"] == measure and r["level"] == anchor.distortion]
    rows = [r for r in rows if r["peer"] == anchor.point.name and np.isfinite(r["ratio"])]
    if not rows:
        return None
    base = rows[0]["peer_bytes"]
    peers = {c: s for c, s in _peer_bytes(points, measure, anchor.distortion).items() if c != anchor.point.name}
    bars: list[tuple[str, float, float, str]] = [(anchor.point.name, base, 0.0, GREY)]
    bars += [(name, size, 0.0, GREY) for name, size in sorted(peers.items(), key=lambda item: -item[1])]
    bars += [(r["strategy"], r["strategy_bytes"], r["ratio_error"] * base, _color(r["strategy"])) for r in rows]
    with rc_context(STYLE):
        figure = new_figure(1.6 + 0.3 * len(bars))
        axes = figure.subplots()
        y = np.arange(len(bars))
        sizes = [size for _, size, _, _ in bars]
        axes.barh(y, sizes, color=[color for *_, color in bars], height=0.66)
        axes.errorbar(sizes, y, xerr=[error for _, _, error, _ in bars], fmt="none", ecolor=INK, elinewidth=1)
        first = len(bars) - len(rows)
        for n, (_, size, _, _) in enumerate(bars):
            text = f"{size / 1e6:.3f} MB · {_percent(size / base - 1)}" if n else f"{size / 1e6:.3f} MB"
            if n > first:
                text += f" · step {_percent(size / base - sizes[n - 1] / base)}"
            beside(axes, size, n, text)
        extrapolated = {r["strategy"] for r in rows if r["extrapolated"]}
        axes.set_yticks(y, [name + (" *" if name in extrapolated else "") for name, *_ in bars])
        axes.set_ylim(len(bars) - 0.5, -0.5)
        axes.set_xlim(0, max(sizes) * 1.42)
        axes.xaxis.set_major_formatter(EngFormatter(sep=" ", unit="B"))
        level = f"{TITLES[measure][1]}: {anchor.distortion:.4g}"
        axes.set(
            title=f"Bytes at the distortion of {anchor.point.name}",
            xlabel=level + ("   * beyond the measured points" if extrapolated else ""),
        )
        axes.grid(False, axis="y")
    return figure


def _peer_bytes(points: Sequence[Measured], measure: Measure, level: float) -> Mapping[str, float]:
    """Return the bytes of every peer's curves at a distortion within their measured range."""
    readings = {name: at_distortion(c, level) for name, c in peer_curves(points, measure).items()}
    return {name: reading.bytes for name, reading in readings.items() if not reading.extrapolated}


def _color(name: str) -> str:
    return next(color for parts, color in GROUPS if any(part in name for part in parts))


def _percent(share: float) -> str:
    return f"{100 * share:+.2f} %".replace("-", "−")


def _label_ends(axes: Axes, ends: Sequence[tuple[str, float, float, str]]) -> None:
    """Name curves in the right margin, moved apart; ends are (name, x, y, colour) of their last points."""
    low, high = np.log10(axes.get_ylim())
    right = max(x for _, x, _, _ in ends)
    gap = min(0.052, 1 / len(ends))
    ordered = sorted(ends, key=lambda end: -end[2])
    heights, at = [], 1.0 + gap
    for _, _, y, _ in ordered:  # down, each name below its predecessor
        at = min(at - gap, float((np.log10(y) - low) / (high - low)) + 0.3 * gap)
        heights.append(at)
    at = -gap
    for n in reversed(range(len(heights))):  # up again, no name below the axis
        at = heights[n] = max(at + gap, heights[n])
    for (name, x, y, color), height in zip(ordered, heights, strict=True):
        axes.annotate(
            name,
            (x, y),
            xytext=(1.03, height),
            textcoords=axes.transAxes,
            fontsize=8.5,
            color=color,
            va="center",
            arrowprops={"arrowstyle": "-", "color": color, "linewidth": 0.5, "alpha": 0.6} if x <= right else None,
            annotation_clip=False,
        )
