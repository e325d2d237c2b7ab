"""Draw the pictures of a report: the training curve, a pack's bits by tensor, and the bits of a proof."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import EngFormatter, FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator

from eval.figures import BLUE, FAINT, GREEN, GREY, INK, ORANGE, PURPLE, STYLE, beside, new_figure, smoothed

ROLES = {"embedding": ORANGE, "hash": GREEN, "matrix": BLUE, "vector": PURPLE, "other": GREY}
"""The colour of each kind of tensor; `other` stands for the parts of a pack beside tensors."""

REST = "scales, tokenizer, header"

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
"""The cause of each step from one stage of ACCOUNT to the next."""


class TensorSize(NamedTuple):
    """The size of a tensor in a pack; `role` is a key of ROLES, and `weights` is 0 for other parts of the pack."""

    name: str
    role: str
    weights: int
    bytes: int


class DocumentSize(NamedTuple):
    """Bytes of a document: as text, through the model (or stored, as in the archive), and under zstd -19 alone."""

    text: int
    coded: int
    zstd: int


def training_curve(metrics: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw the loss over the seconds of a run, and the share of the learning rate below the loss.

    Args:
        metrics: the lines of `metrics.jsonl`. Lines with `train_loss` (nats per token) make the curve, lines with
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
        if len(losses) > 20:  # the losses of the first steps would flatten the rest of the curve
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


def bits_per_tensor(tensors: Sequence[TensorSize]) -> Figure:
    """Draw bits per weight and bytes of every tensor of a pack, grouped by role; all vectors share one bar."""
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
    """Draw the bits per byte of each document twice: as a distribution, and against the document's length."""
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


def bits_account(proof: Mapping[str, Any]) -> Figure:
    """Draw the bits per byte at each stage from the float model to the archive, and the cost of every step between."""
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


def baselines(text_bytes: int, ours: Mapping[str, int], others: Mapping[str, int]) -> Figure:
    """Draw the coded sizes of one text, the smallest on top.

    Args:
        text_bytes: size of the text.
        ours: bytes of this project's archives, by name.
        others: bytes under general-purpose compressors, by name.
    """
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


def _signed(value: float) -> str:
    """Format a difference with its sign, however small."""
    text = f"{value:+.5f}" if abs(value) >= 1e-5 else f"{value:+.0e}" if value else "0"
    return text.replace("-", "−")


def _size(count: int) -> str:
    """Format a number of bytes with about three digits."""
    for unit, scale in (("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.3g} {unit}"
    return f"{count} B"
