"""The picture of text compressors: size against speed."""

from collections.abc import Sequence
from itertools import chain

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator
from matplotlib.transforms import Bbox

from eval.bench.text import OURS, Measured
from eval.figures import BLUE, GREY, INK, STYLE, new_figure

FONT, LINE, NEAR = 8, 11, 7
"""Measures of labels, in points: font size, distance of lines, distance from the labelled point."""

LINES = 12  # by which a label is moved at most


def ratio_against_speed(rows: Sequence[Measured]) -> Figure:
    """Draw a panel for each text: each compressor's ratio over its speed, from encoding (ring) to decoding (dot)."""
    texts = list(dict.fromkeys(row.text for row in rows))
    with rc_context(STYLE):
        figure = new_figure(2.9 * len(texts))
        panels = figure.subplots(len(texts), 1, sharex=True, squeeze=False)[:, 0]
        for axes, text in zip(panels, texts, strict=True):
            for row in (row for row in rows if row.text == text):
                color = BLUE if row.name == OURS else GREY
                axes.plot(_speeds(row), [row.ratio] * 2, color=color)
                for speed, style in zip(_speeds(row), ("none", "full"), strict=True):
                    axes.plot(speed, row.ratio, "o", color=color, fillstyle=style)
            axes.set(title=text, xscale="log", ylabel="text over archive,\nmodel left out")
            axes.xaxis.set_major_formatter(FuncFormatter(lambda speed, _: f"{speed:,.10g}"))
            axes.xaxis.set_minor_locator(NullLocator())
            axes.margins(y=0.18)
        panels[-1].set_xlabel("kB of text for a second of processor time: encoding (ring), decoding (dot)")
        figure.draw_without_rendering()  # computes all positions
        for axes, text in zip(panels, texts, strict=True):
            _label(axes, sorted((row for row in rows if row.text == text), key=lambda row: -row.ratio), figure.dpi / 72)
    return figure


def _speeds(row: Measured) -> tuple[float, float]:
    """Return the speeds of encoding and decoding, in kB a second."""
    return row.text_bytes / 1e3 / row.encode_seconds, row.text_bytes / 1e3 / row.decode_seconds


def _label(axes: Axes, rows: Sequence[Measured], point: float) -> None:
    """Name each compressor above or below its slower speed, as near as possible without meeting a line or a name.

    A `point` is so many pixels.
    """
    ends = {row.name: axes.transData.transform([(speed, row.ratio) for speed in sorted(_speeds(row))]) for row in rows}
    lines = [Bbox(end).padded(5 * point) for end in ends.values()]
    names: list[Bbox] = []
    for row in rows:
        (x, y), place = ends[row.name][0], (min(_speeds(row)), row.ratio)
        label = axes.annotate(row.name, place, (0, NEAR), textcoords="offset points", color=INK, fontsize=FONT)
        for offset in chain.from_iterable((NEAR + n * LINE, -NEAR - FONT - n * LINE) for n in range(LINES)):
            label.set_position((0, offset))
            box = label.get_window_extent()
            leader = Bbox([[x, min(y, box.y0)], [x + point, max(y, box.y1)]])
            inside = axes.bbox.y0 <= box.y0 and box.y1 <= axes.bbox.y1
            if inside and not box.count_overlaps([*lines, *names]) and not leader.count_overlaps(names):
                break
        names.append(box)
        if abs(offset) > NEAR + FONT:
            line = {"arrowstyle": "-", "color": GREY, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 3}
            end = (0, offset - 1 if offset > 0 else offset + FONT)
            axes.annotate("", place, end, textcoords="offset points", arrowprops=line)
