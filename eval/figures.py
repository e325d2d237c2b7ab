"""Pictures: pure functions from data to matplotlib figures, and `svg` and `png` to make bytes of a figure.

One palette for all: what is ours is blue, what we compare with is grey, what a reader should notice is orange.
"""

import math
from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any, NamedTuple

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import EngFormatter, FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator

BLUE, ORANGE, GREEN, PURPLE, GREY = "#2563a8", "#d9730d", "#2a8c5f", "#7e57a8", "#9aa5b1"
INK, FAINT = "#1f2933", "#e4e8ee"
ROLES = {"embedding": ORANGE, "hash": GREEN, "matrix": BLUE, "vector": PURPLE, "other": GREY}
"""The colour of each kind of tensor; `other` is what a pack holds beside tensors."""

REST = "scales, tokenizer, header"

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
    "svg.hashsalt": "underpar",  # the same picture is the same bytes
}


class TensorSize(NamedTuple):
    """What a tensor weighs in a pack. `role` is a key of ROLES; `weights` is 0 for what is no tensor."""

    name: str
    role: str
    weights: int
    bytes: int


class DocumentSize(NamedTuple):
    """Bytes of a document: as it is, through the model (or stored, as the archive has it), and under zstd -19 alone."""

    text: int
    coded: int
    zstd: int


def svg(figure: Figure) -> bytes:
    """The figure as SVG with its text as outlines, so that it looks the same wherever it is shown."""
    return _render(figure, "svg", metadata={"Date": None})


def png(figure: Figure, dpi: int = 130) -> bytes:
    """The figure as PNG."""
    return _render(figure, "png", dpi=dpi)


def rendered(pictures: Mapping[str, Figure]) -> dict[str, bytes]:
    """Each picture as SVG and as PNG, by file name."""
    return {f"{name}.{form.__name__}": form(figure) for name, figure in pictures.items() for form in (svg, png)}


def training_curve(metrics: Sequence[Mapping[str, Any]]) -> Figure:
    """Loss over the seconds of a run, and the share of the learning rate below it.

    Args:
        metrics: the lines of `metrics.jsonl`; those with `train_loss` (nats per token) make the curve, those with
            `val_loss` the diamonds.
    """
    train = [m for m in metrics if m.get("train_loss") is not None]
    val = [m for m in metrics if m.get("val_loss") is not None]
    seconds = [m["seconds"] for m in train]
    losses = np.array([m["train_loss"] for m in train])
    with rc_context(STYLE):
        figure = new_figure(4.4)
        top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
        crowded = len(train) > 60
        top.plot(seconds, losses, color=BLUE, alpha=0.3 if crowded else 1, label="training batches" if train else None)
        if crowded:
            top.plot(seconds, smoothed(losses, len(train) // 30), color=BLUE, label="the same, smoothed")
        for m in val:
            top.plot(m["seconds"], m["val_loss"], "D", color=ORANGE, markersize=7, clip_on=False, zorder=3)
            top.annotate(
                f"validation {m['val_loss']:.3f}",
                (m["seconds"], m["val_loss"]),
                xytext=(-8, 14),
                textcoords="offset points",
                color=ORANGE,
                weight="bold",
                ha="right",
            )
        if len(losses) > 20:  # the first steps' losses would press the rest of the curve flat
            shown = [*losses[len(losses) // 20 :], *(m["val_loss"] for m in val)]
            margin = 0.08 * (max(shown) - min(shown)) + 1e-3
            top.set_ylim(min(shown) - margin, max(shown) + 2 * margin)
        top.set(title="Loss while training", ylabel="nats per token")
        if crowded:
            top.legend(loc="upper right")
        scales = [m.get("lr_scale", 1.0) for m in train]
        bottom.fill_between(seconds, scales, color=FAINT)
        bottom.plot(seconds, scales, color=GREY)
        bottom.set(ylabel="learning rate\n(share)", xlabel="seconds of training", ylim=(0, 1.08))
        bottom.set_yticks([0, 1])
        if seconds:
            bottom.set_xlim(0, max(seconds) * 1.02)
    return figure


def smoothed(values: np.ndarray, width: int) -> np.ndarray:
    """The mean of the `width` values on either side of each value [N]; fewer at the ends."""
    sums = np.concatenate(([0.0], np.cumsum(values)))
    index = np.arange(len(values))
    low, high = np.maximum(index - width, 0), np.minimum(index + width + 1, len(values))
    return (sums[high] - sums[low]) / (high - low)


def bits_per_tensor(tensors: Sequence[TensorSize]) -> Figure:
    """Bits per weight and bytes of every tensor of a pack, grouped by role; vectors are taken together."""
    rows = [t for role in ("embedding", "hash", "matrix") for t in tensors if t.role == role]
    for role, name in (("vector", "all vectors"), ("other", REST)):
        if group := [t for t in tensors if t.role == role]:
            rows.append(TensorSize(name, role, sum(t.weights for t in group), sum(t.bytes for t in group)))
    with rc_context(STYLE):
        figure = new_figure(max(2.6, 1.1 + 0.23 * len(rows)))
        left, right = figure.subplots(1, 2, sharey=True, width_ratios=(1, 1))
        y = np.arange(len(rows))
        colors = [ROLES[t.role] for t in rows]
        bits = [8 * t.bytes / t.weights if t.weights else 0.0 for t in rows]
        left.barh(y, bits, color=colors, height=0.72)
        right.barh(y, [t.bytes for t in rows], color=colors, height=0.72)
        for i, t in enumerate(rows):
            if t.weights:
                beside(left, bits[i], i, f"{bits[i]:.2f}")
            beside(right, t.bytes, i, _size(t.bytes))
        left.set_yticks(y, [t.name.removesuffix(".weight").removeprefix("blocks.") for t in rows], fontsize=8.5)
        left.set_ylim(len(rows) - 0.4, -0.6)
        left.set(title="Bits per weight", xlabel="bits")
        right.set(title=f"Bytes ({_size(sum(t.bytes for t in rows))} in all)", xlabel="bytes")
        right.xaxis.set_major_formatter(EngFormatter(sep=""))
        for axes, widest in ((left, max(bits, default=0)), (right, max((t.bytes for t in rows), default=0))):
            axes.set_xlim(0, max(widest, 1e-9) * 1.18)
            axes.grid(False, axis="y")
        present = [role for role in ROLES if any(t.role == role for t in rows)]
        names = {"hash": "hash table", "other": "not a tensor"}
        handles = [Patch(color=ROLES[role], label=names.get(role, role)) for role in present]
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=9)
    return figure


def bpb_per_document(documents: Sequence[DocumentSize]) -> Figure:
    """How many bits a byte of each document costs: the distribution, and against the document's length."""
    documents = [d for d in documents if d.text]
    text = np.array([d.text for d in documents], float)
    ours = 8 * np.array([d.coded for d in documents], float) / text
    zstd = 8 * np.array([d.zstd for d in documents], float) / text
    with rc_context(STYLE):
        figure = new_figure(3.6)
        left, right = figure.subplots(1, 2, sharey=True, width_ratios=(1, 1.9))
        high = 1.06 * float(max(ours.max(initial=1), zstd.max(initial=1)))
        bins = np.linspace(0, high, 36).tolist()
        for values, color, name in ((zstd, GREY, "zstd -19"), (ours, BLUE, "this pack")):
            left.hist(values, bins, color=color, alpha=0.85, orientation="horizontal", label=name)
            right.scatter(text, values, s=16, color=color, alpha=0.75, linewidths=0, label=name)
            if len(text):
                mean = float((values * text).sum() / text.sum())
                right.axhline(mean, color=color, linewidth=1, linestyle=(0, (4, 3)))
                right.annotate(
                    f"{mean:.2f}",
                    (1, mean),
                    xycoords=("axes fraction", "data"),
                    xytext=(4, 0),
                    textcoords="offset points",
                    va="center",
                    color=color,
                    weight="bold",
                )
        left.set(title="Spread over documents", ylabel="bits per byte", xlabel="documents", ylim=(0, high))
        left.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        right.set(title="Bits per byte against length", xlabel="bytes of text", xscale="log", ylim=(0, high))
        if not len(text):
            right.set_xlim(100, 10_000)
        right.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        right.xaxis.set_minor_locator(NullLocator())
        right.xaxis.set_major_formatter(EngFormatter(sep=""))
        handles, labels = right.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=2, markerscale=1.8)
    return figure


ACCOUNT = (
    ("bpb_float", "float model"),
    ("bpb_exact", "exact model"),
    ("bpb_ideal", "integer frequencies"),
    ("bpb_coded", "coded records"),
    ("bpb_canonical", "with stored documents"),
    ("bpb_raw", "the whole archive"),
)
"""The stages of a proof's account, in bits per byte, and their names in a picture."""

STEPS = (
    "fixed-point arithmetic",
    "rounding to 24-bit frequencies",
    "the coder's last bytes, and edits",
    "documents that were stored",
    "index, checksums; bytes of the original",
)
"""What each step from one stage of ACCOUNT to the next is due to."""


def bits_account(proof: Mapping[str, Any]) -> Figure:
    """From the float model's bits per byte to those of the archive, and what every step between them costs."""
    values = [float(proof[name]) for name, _ in ACCOUNT]
    deltas = np.diff(values)
    linear = 1e-5  # bits per byte below which the scale is linear
    with rc_context(STYLE):
        figure = new_figure(3.9)
        left, right = figure.subplots(1, 2, width_ratios=(1, 1.25))
        y = np.arange(len(values))
        left.barh(y, values, color=[BLUE] * (len(values) - 1) + [ORANGE], height=0.62)
        for i, value in enumerate(values):
            beside(left, value, i, f"{value:.5f}")
        left.set_yticks(y, [name for _, name in ACCOUNT])
        left.set_ylim(len(values) - 0.5, -0.5)
        left.set_xlim(0, max(*values, 1e-9) * 1.3)
        left.set(title="Bits per byte at each stage", xlabel="bits per byte")
        between = y[:-1] + 0.5
        right.barh(between, deltas, color=[ORANGE if d > 0 else GREEN for d in deltas], height=0.62)
        right.axvline(0, color=INK, linewidth=0.8)
        reach = 10 ** math.ceil(math.log10(max(np.abs(deltas).max(), 10 * linear)))
        right.set_xscale("symlog", linthresh=linear, linscale=0.6)
        right.set_xlim(-reach * 50, reach * 50)
        powers = [10.0**n for n in range(-3, round(math.log10(reach)) + 1, 2)]
        right.xaxis.set_major_locator(FixedLocator([-p for p in powers] + [0] + powers))
        right.xaxis.set_minor_locator(NullLocator())
        right.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:+g}".replace("-", "−") if x else "0"))
        right.tick_params(axis="x", labelsize=8.5)
        for at, delta, reason in zip(between, deltas, STEPS, strict=True):
            beside(right, delta, at, _signed(delta), weight="bold")
            right.annotate(reason, (0, at - 0.46), xytext=(0, 0), textcoords="offset points", ha="center", va="center",
                           fontsize=8.5, bbox={"facecolor": "white", "edgecolor": "none", "pad": 1})  # fmt: skip
        right.set_yticks([])
        right.set_ylim(*left.get_ylim())
        right.set(title="What each step adds", xlabel="bits per byte (log scale either side of 0)")
        for axes in (left, right):
            axes.grid(False, axis="y")
    return figure


def peers(text_bytes: int, ours: Mapping[str, int], others: Mapping[str, int]) -> Figure:
    """Coded size of the same text: ours (bytes by name) beside general-purpose compressors, smallest first."""
    rows = sorted([*ours.items(), *others.items()], key=lambda row: row[1])
    with rc_context(STYLE):
        figure = new_figure(1.5 + 0.36 * len(rows))
        axes = figure.subplots()
        colors = [BLUE if name in ours else GREY for name, _ in rows]
        axes.barh(range(len(rows)), [size for _, size in rows], color=colors, height=0.68)
        for i, (_, size) in enumerate(rows):
            beside(axes, size, i, f"{size:,} bytes · {8 * size / max(1, text_bytes):.2f} bits per byte")
        axes.set_yticks(range(len(rows)), [name for name, _ in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlim(0, max((size for _, size in rows), default=1) * 1.42)
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.set(title=f"{text_bytes:,} bytes of text, coded", xlabel="bytes")
        axes.grid(False, axis="y")
    return figure


def new_figure(height: float) -> Figure:
    """An empty figure WIDTH wide and `height` inches high, which no window shows."""
    figure = Figure(figsize=(WIDTH, height))
    FigureCanvasAgg(figure)
    return figure


def _render(figure: Figure, form: str, **options: Any) -> bytes:
    out = BytesIO()
    with rc_context(STYLE):
        figure.savefig(out, format=form, **options)
    return out.getvalue()


def beside(axes: Axes, x: float, y: float, text: str, **style: Any) -> None:
    """A label just beyond the end of a horizontal bar."""
    offset, side = ((4, 0), "left") if x >= 0 else ((-4, 0), "right")
    style = {"fontsize": 8.5, **style}
    axes.annotate(text, (x, y), xytext=offset, textcoords="offset points", va="center", ha=side, **style)


def _signed(value: float) -> str:
    """A difference with its sign, however small."""
    text = f"{value:+.5f}" if abs(value) >= 1e-5 else f"{value:+.0e}" if value else "0"
    return text.replace("-", "−")


def _size(count: int) -> str:
    """A number of bytes in three digits or so."""
    for unit, scale in (("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.3g} {unit}"
    return f"{count} B"
