"""Draw pictures of audits: claimed scores beside coded scores, and sums of distributions."""

from collections.abc import Mapping, Sequence
from textwrap import fill

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator
from numpy.typing import NDArray

from eval.audit.audit import Audit
from eval.figures import BLUE, FAINT, GREEN, GREY, INK, ORANGE, STYLE, WIDTH

WORDS = {
    "runs": "does not run",
    "normalised": "sums are not 1",
    "future_unseen": "sees the future",
    "target_unseen": "sees its target",
    "score_before_update": "learns before it scores",
    "decodes": "cannot be decoded",
    "context": "context is not there yet",
    "order": "order must be sent",
    "lengths": "lengths must be sent",
    "bytes": "counts bytes that are not there",
    "text": "text is lost",
    "complete": "part of the set",
    "artifact": "too large",
    "memorised": "knows this text only",
    "score": "below what was coded",
}
"""A failed condition in a few words."""


def claimed_and_coded(audits: Sequence[Audit], titles: Mapping[str, str]) -> Figure:
    """Draw a line for each claim from the claimed to the coded score, and name the conditions that fail.

    Args:
        audits: audits of predictors that ran to the end.
        titles: a description of each claim, by its name.
    """
    rows = sorted(audits, key=lambda a: (not a.failed, -_gap(a)), reverse=True)
    with rc_context(STYLE):
        figure = Figure(figsize=(1.25 * WIDTH, 0.5 * len(rows) + 1.3))
        axes = figure.subplots()
        right = max(max(a.honest_bpb or 0.0, a.claimed_bpb) for a in rows)
        for y, found in enumerate(rows):
            honest, holds = found.honest_bpb or 0.0, not found.failed
            axes.plot([found.claimed_bpb, honest], [y, y], color=GREY if holds else ORANGE, alpha=0.45, linewidth=5)
            axes.plot(found.claimed_bpb, y, "o", color=ORANGE, markersize=13, markerfacecolor="white", mew=2)
            axes.plot(honest, y, "o", color=GREEN if holds else BLUE, markersize=8)
            reasons = [WORDS[name] for name in found.failed if name not in ("score", "decodes")]
            axes.text(
                right * 1.05,
                y,
                found.verdict
                if not found.failed
                else fill(" · ".join(reasons or [WORDS[name] for name in found.failed]), 34),
                va="center",
                color=GREEN if holds else INK,
                fontsize=9,
            )
            if _gap(found) > 0.1:
                axes.text((found.claimed_bpb + honest) / 2, y + 0.2, f"{_gap(found):+.2f}", ha="center", fontsize=8)
        axes.set_yticks(range(len(rows)), [titles.get(found.name, found.name) for found in rows])
        axes.set_xlim(0, right * 1.55)
        axes.set_ylim(-0.7, len(rows) - 0.2)
        axes.set_xticks(np.arange(0, right + 0.5))
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("bits per byte")
        axes.set_title("Claimed, and really coded")
        axes.plot([], [], "o", color=ORANGE, markersize=11, markerfacecolor="white", mew=2, label="claimed")
        axes.plot([], [], "o", color=BLUE, markersize=8, label="coded and decoded")
        axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, borderaxespad=0.2)
    return figure


def sums(said: Mapping[str, NDArray[np.float64]]) -> Figure:
    """Draw the sums of distributions along a text; `said` has float64 [T] by the name of the predictor."""
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 2.9))
        axes = figure.subplots()
        axes.axhspan(0.99, 1.01, color=FAINT)
        for (name, values), color in zip(said.items(), (BLUE, ORANGE, GREEN), strict=False):
            axes.plot(values, color=color, label=name)
        axes.set_yscale("log")
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.set_xlabel("token")
        axes.set_ylabel("sum of the probabilities")
        axes.set_title("A code can be built only where the sum is 1")
        axes.legend(loc="center right")
    return figure


def _gap(found: Audit) -> float:
    return (found.honest_bpb or 0.0) - found.claimed_bpb
