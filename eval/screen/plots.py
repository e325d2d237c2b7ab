"""Pictures of screens: each variant's change, losses by tokens and by seconds, and ranks of one screen in another."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from eval.figures import BLUE, GREEN, GREY, INK, ORANGE, PURPLE, STYLE, beside, new_figure, smoothed
from eval.screen.ranks import Ranking, verdict
from eval.screen.screen import Result
from eval.screen.tables import Effect
from eval.screen.variants import BASE

SIGNIFICANT = 0.05

NAMED = (BLUE, GREEN, ORANGE, PURPLE)
"""Colours of the named curves: the two best variants and the two worst."""


def pictures(results: Sequence[Result], found: Sequence[Effect]) -> dict[str, Figure]:
    """Draw both pictures by file name; none if `found`, the effects of `results`, is empty."""
    return {"differences": differences(found), "curves": curves(results, found)} if found else {}


def differences(found: Sequence[Effect]) -> Figure:
    """Draw a bar for each variant, best first, with its standard error and p.

    Blue is better at p < 0.05, orange worse.
    """
    base, *rest = found
    rest.sort(key=lambda effect: effect.difference)
    with rc_context(STYLE):
        figure = new_figure(1.6 + 0.3 * max(1, len(rest)))
        axes = figure.subplots()
        values = [effect.difference for effect in rest]
        errors = [effect.difference_error or 0.0 for effect in rest]
        axes.barh(range(len(rest)), values, color=[_color(effect) for effect in rest], height=0.66)
        axes.errorbar(values, range(len(rest)), xerr=errors, fmt="none", ecolor=INK, elinewidth=1)
        for n, effect in enumerate(rest):
            text = f"{effect.difference:+.4f}".replace("-", "−")
            if effect.p is not None:
                text += f" ± {effect.difference_error:.4f} · p {effect.p:.2g}"
            end = effect.difference + (errors[n] if effect.difference >= 0 else -errors[n])
            beside(axes, end, n, text)
        axes.axvline(0, color=INK, linewidth=0.8)
        low = min((v - e for v, e in zip(values, errors, strict=True) if v < 0), default=0.0)
        high = max((v + e for v, e in zip(values, errors, strict=True) if v >= 0), default=0.0)
        room = 0.9 * (high - low or 1e-3)  # room for labels, on either side
        axes.set_xlim(low - room, high + room)
        axes.set_yticks(range(len(rest)), [effect.variant for effect in rest])
        axes.set_ylim(len(rest) - 0.4, -0.6)
        axes.set(
            title=f"Change over the recipe ({base.bpb:.4f} bits per byte)",
            xlabel=f"bits per byte{' ± standard error' if any(errors) else ''}; left is better",
        )
        axes.grid(False, axis="y")
    return figure


def curves(results: Sequence[Result], found: Sequence[Effect]) -> Figure:
    """Draw the training loss of every variant, smoothed and averaged over its seeds, by tokens and by seconds.

    Runs that shared a device have no comparable seconds: their losses are drawn by tokens alone.
    """
    timed = all(result.seconds is not None for result in results)
    rest = sorted(found[1:], key=lambda effect: effect.difference)
    ends = [*rest[:2], *rest[-2:]] if len(rest) > len(NAMED) else rest
    colors = {effect.variant: color for effect, color in zip(ends, NAMED, strict=False)}
    names = [*(e.variant for e in rest if e.variant not in colors), *colors, BASE]
    with rc_context(STYLE):
        figure = new_figure(4.4)
        axes = figure.subplots(1, 2 if timed else 1, sharey=True, squeeze=False)[0]
        shown = []
        for name in names:
            tokens, seconds, losses = _mean_curve([r.metrics for r in results if r.variant == name])
            color = INK if name == BASE else colors.get(name, GREY)
            label = name if name == BASE or name in colors else None
            for side, x in zip(axes, (tokens, seconds), strict=False):
                side.plot(x, losses, color=color, label=label, alpha=1 if label else 0.5, linewidth=1.8 if label else 1)
            shown += losses[len(losses) // 5 :].tolist()
        margin = 0.05 * (max(shown) - min(shown)) + 1e-3
        axes[0].set_ylim(min(shown) - margin, max(shown) + margin)  # the first steps would flatten the rest
        axes[0].set(title="Training loss", ylabel="nats per token", xlabel="tokens")
        if timed:
            axes[1].set(xlabel="seconds of training")
        axes[0].xaxis.set_major_formatter(EngFormatter(sep=""))
        axes[0].xaxis.set_major_locator(MaxNLocator(6))
        handles, labels = axes[0].get_legend_handles_labels()
        order = [labels.index(name) for name in (BASE, *colors)]
        figure.legend(
            [handles[n] for n in order], [labels[n] for n in order], loc="outside lower center", ncols=len(order)
        )
    return figure


def ranks(ranking: Ranking) -> Figure:
    """Draw the variants' ranks in one screen, from the top, over those in the other; orange: the directions differ."""
    rows = ranking.ranked
    with rc_context(STYLE):
        figure = new_figure(1.6 + 0.24 * len(rows))
        axes = figure.subplots()
        ends = (0.5, len(rows) + 0.5)
        axes.plot(ends, ends, color=GREY, linewidth=1, linestyle=(0, (4, 3)))
        places = range(1, len(rows) + 1)
        for row, place in zip(rows, places, strict=True):
            axes.plot(row.first_rank, place, "o", color=BLUE if row.same_direction else ORANGE, markersize=7)
            text = f"{row.first.difference:+.4f} / {row.second.difference:+.4f}".replace("-", "−")
            beside(axes, row.first_rank, place, f"  {text}")
        axes.set_yticks(places, [row.variant for row in rows])
        axes.set_ylim(*reversed(ends))
        axes.set_xlim(*ends)
        axes.xaxis.set_major_locator(MaxNLocator(10, integer=True))
        axes.set_title(f"Variants as {ranking.second} ranks them, the best at the top\n{verdict(ranking)}")
        axes.set_xlabel(f"rank in {ranking.first}; beside it the change in bits per byte there / in {ranking.second}")
    return figure


def _mean_curve(logs: Sequence[Sequence[dict[str, Any]]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return tokens, seconds and smoothed loss at the steps that all runs logged."""
    runs = [{m["step"]: m for m in log if "train_loss" in m} for log in logs]
    steps = [step for step in runs[0] if all(step in run for run in runs)]
    noted = [[run[step] for step in steps] for run in runs]
    rows = [[(m["tokens"], m["seconds"], m["train_loss"]) for m in run] for run in noted]
    tokens, seconds, losses = np.array(rows).mean(0).T
    return tokens, seconds, smoothed(losses, max(1, len(losses) // 40))


def _color(effect: Effect) -> str:
    if effect.p is None or effect.p >= SIGNIFICANT:
        return GREY
    return BLUE if effect.difference < 0 else ORANGE
