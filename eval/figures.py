"""Pictures: one style for matplotlib figures, and `svg` and `png` to render a figure.

One palette for all pictures: this project is blue, comparisons are grey, and what a reader should notice is orange.
"""

from collections.abc import Mapping
from io import BytesIO
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, PURPLE, GREY = "#2563a8", "#d9730d", "#2a8c5f", "#7e57a8", "#9aa5b1"
INK, FAINT = "#1f2933", "#e4e8ee"

WIDTH = 8.6  # inches, of every picture

STYLE: Any = {
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.h_pad": 0.08,
    "figure.constrained_layout.w_pad": 0.1,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": GREY,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlepad": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "svg.hashsalt": "underpar",  # the same picture gives the same bytes
}


def svg(figure: Figure) -> bytes:
    """Render the figure as SVG with its text as outlines, so that it looks the same everywhere."""
    return _render(figure, "svg", metadata={"Date": None})


def png(figure: Figure, dpi: int = 130) -> bytes:
    """Render the figure as PNG."""
    return _render(figure, "png", dpi=dpi)


def rendered(pictures: Mapping[str, Figure]) -> dict[str, bytes]:
    """Render each picture as SVG and as PNG, by file name."""
    return {f"{name}.{form.__name__}": form(figure) for name, figure in pictures.items() for form in (svg, png)}


def smoothed(values: np.ndarray, width: int) -> np.ndarray:
    """Return the mean of the `width` values on either side of each value [N]; fewer at the ends."""
    sums = np.concatenate(([0.0], np.cumsum(values)))
    index = np.arange(len(values))
    low, high = np.maximum(index - width, 0), np.minimum(index + width + 1, len(values))
    return (sums[high] - sums[low]) / (high - low)


def new_figure(height: float) -> Figure:
    """Make an empty figure, WIDTH wide and `height` inches high, without a window."""
    figure = Figure(figsize=(WIDTH, height))
    FigureCanvasAgg(figure)
    return figure


def _render(figure: Figure, form: str, **options: Any) -> bytes:
    out = BytesIO()
    with rc_context(STYLE):
        figure.savefig(out, format=form, **options)
    return out.getvalue()


def beside(axes: Axes, x: float, y: float, text: str, **style: Any) -> None:
    """Write a label just beyond the end of a horizontal bar."""
    offset, side = ((4, 0), "left") if x >= 0 else ((-4, 0), "right")
    style = {"fontsize": 8.5, **style}
    axes.annotate(text, (x, y), xytext=offset, textcoords="offset points", va="center", ha=side, **style)
