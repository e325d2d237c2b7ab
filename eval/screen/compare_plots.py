"""The picture of several training runs: bits per byte over seconds and over tokens."""

from collections.abc import Sequence
from itertools import cycle

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.ticker import EngFormatter, MaxNLocator
from numpy.typing import NDArray

from eval.figures import BLUE, GREEN, GREY, INK, ORANGE, PURPLE, STYLE, new_figure
from eval.screen.compare import Trained

COLORS = (BLUE, ORANGE, GREEN, PURPLE, INK, GREY)
"""Colours of the runs in turn, repeated."""

BEGINNING = 0.08
"""First share of a run's seconds, whose losses may lie above the picture: they would flatten the rest."""

FONT, LINE = 9, 12
"""Measures of labels, in points: font size and distance of lines."""


def curves(runs: Sequence[Trained]) -> Figure:
    """Draw bits per byte of the training batches (dots), their running median (line), and of validation (diamond).

    The names stand at the ends of the lines.
    """
    lines = [(run, running_median(run.bpb, len(run.bpb) // 20)) for run in runs]
    with rc_context(STYLE):
        figure = new_figure(4.8)
        panels = figure.subplots(1, 2, sharey=True)
        for (run, median), color in zip(lines, cycle(COLORS), strict=False):
            for axes, x in zip(panels, (run.seconds, run.tokens), strict=True):
                axes.plot(x, run.bpb, "o", color=color, alpha=0.3, markersize=2.6, markeredgewidth=0)
                axes.plot(x, median, color=color)
                if run.summary.val_bpb is not None:
                    axes.plot(x[-1], run.summary.val_bpb, "D", color=color, markersize=6, clip_on=False, zorder=4)
        shown = [value for run, median in lines for value in median[run.seconds >= BEGINNING * run.seconds[-1]]]
        shown += [run.summary.val_bpb for run in runs if run.summary.val_bpb is not None]
        margin = 0.05 * (max(shown) - min(shown)) + 1e-3
        panels[0].set_ylim(min(shown) - margin, max(shown) + margin)
        panels[0].set(title="Loss over time", ylabel="bits per byte", xlabel="seconds of training")
        panels[1].set(title="Loss over tokens", xlabel="tokens of training")
        panels[1].xaxis.set_major_formatter(EngFormatter(sep=""))
        for axes, name in zip(panels, ("seconds", "tokens"), strict=True):
            axes.set_xlim(0, 1.02 * max(getattr(run, name)[-1] for run in runs))
            axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        _legend(figure, any(run.summary.val_bpb is not None for run in runs))
        figure.draw_without_rendering()  # computes all positions
        for axes, name in zip(panels, ("seconds", "tokens"), strict=True):
            labels = []
            for (run, median), color in zip(lines, cycle(COLORS), strict=False):
                x = getattr(run, name)[-1]
                labels.append((x, median[-1], run.summary.run, color))
                if run.summary.val_bpb is not None:
                    labels.append((x, run.summary.val_bpb, f"{run.summary.val_bpb:.3f}", color))
            _label(axes, labels, figure.dpi / 72)
    return figure


def running_median(values: NDArray[np.float64], width: int) -> NDArray[np.float64]:
    """Return the median of each value [N] and the `width` values on either side; fewer at the ends."""
    return np.array([np.median(values[max(0, n - width) : n + width + 1]) for n in range(len(values))])


def _legend(figure: Figure, validated: bool) -> None:
    """Explain dot, line and diamond, in no run's colour."""
    handles = [
        Line2D([], [], color=GREY, label="batch", linestyle="", marker="o", markersize=3),
        Line2D([], [], color=GREY, label="running median"),
    ]
    if validated:
        handles.append(Line2D([], [], color=GREY, label="validation", linestyle="", marker="D", markersize=6))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))


def _label(axes: Axes, labels: Sequence[tuple[float, float, str, str]], point: float) -> None:
    """Write texts to the right of points, moved apart where they would overlap.

    Args:
        axes: of the points.
        labels: x, y, text and colour of each.
        point: pixels of a typographic point.
    """
    labels = sorted(labels, key=lambda label: label[1])
    heights = [axes.transData.transform((x, y))[1] / point for x, y, _, _ in labels]
    places = spread(heights, LINE, axes.bbox.y0 / point + LINE / 2)
    for (x, y, text, color), height, place in zip(labels, heights, places, strict=True):
        axes.annotate(
            text,
            (x, y),
            (8, place - height),
            textcoords="offset points",
            va="center",
            color=color,
            fontsize=FONT,
            weight="bold",
            path_effects=[withStroke(linewidth=2.5, foreground="white")],
        )


def spread(values: Sequence[float], distance: float, lowest: float) -> list[float]:
    """Move ascending values apart, `distance` between neighbours; values that meet keep their mean, above `lowest`."""
    groups: list[tuple[float, int]] = []  # where a group would begin if its members had one place, and their number
    for n, value in enumerate(values):
        start, count = value - n * distance, 1
        while groups and groups[-1][0] > start:
            before, members = groups.pop()
            start, count = (before * members + start * count) / (members + count), members + count
        groups.append((start, count))
    starts = [max(start, lowest) for start, count in groups for _ in range(count)]
    return [start + n * distance for n, start in enumerate(starts)]
