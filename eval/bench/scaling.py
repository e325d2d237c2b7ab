"""Compute what much text costs, and simulate how well several GPUs decode together, from figures of one GPU.

    python -m eval.bench.scaling --price 3 -o docs/images/scaling.svg

prints the tables of docs/scaling.md for a price of a GPU hour, and draws the speed-up that the simulation gives.
"""

import sys
from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from codec.archive.reader import GROUP_TEXT
from codec.files import atomic_write
from codec.text.coder import FEWEST_SLOTS, MOST_SLOTS
from codec.text.workers import portions
from eval.figures import BLUE, GREY, INK, STYLE, new_figure, svg
from trainer.data.sample import val_documents

TEXT_BYTES, TEXT_TOKENS = 40e6, 10.12e6
"""The web documents whose coding docs/results/speed.md measures: up to 10,000 bytes, 829 tokens a document."""

ENCODE, DECODE = 862e3, 239e3
"""Tokens a second on one H200, from end to end."""

_STEP_AT_0, _KEY = 3.82e-3, 3.66e-9
"""Seconds of a step of 2,048 slots at position 0, and for each key that a slot sees: the line through the steps at
positions 64 and 1,500 in docs/results/speed.md (4.30 and 15.06 ms)."""

FIXED = (1 / 3, 2 / 3)
"""The part of `_STEP_AT_0` that does not shrink with the slots: not measured, so the simulation is run with both. The
first makes the fixed part as long as FEWEST slots take."""

FEWEST, MOST = FEWEST_SLOTS["cuda"], MOST_SLOTS["cuda"]
"""Slots of a GPU."""


def documents(tokens: float, seed: int = 0) -> NDArray[np.int64]:
    """Draw the lengths of documents, int64 [N], of so many tokens together: those of the sample up to 10,000 bytes."""
    bytes_of = np.array([len(d) for d in val_documents() if len(d) <= 10_000])
    lengths = np.maximum(1, bytes_of * TEXT_TOKENS / TEXT_BYTES).astype(np.int64)
    drawn = np.random.default_rng(seed).choice(lengths, int(2 * tokens / lengths.mean()))
    return drawn[: int(np.searchsorted(np.cumsum(drawn), tokens)) + 1]


def decode_seconds(lengths: NDArray[np.int64], fixed: float) -> float:
    """Return the seconds that one GPU takes to decode documents of so many tokens, step by step.

    Slots take the longest document first, and the next one when a document ends (`codec.text.scheduler`); their number
    is that of `codec.text.coder.Coder`.
    """
    useful = max(1, round(lengths.sum() / lengths.max() / FEWEST)) * FEWEST
    waiting = np.sort(lengths)[::-1]
    slots = min(MOST, useful, len(waiting))
    left, at = waiting[:slots].copy(), np.zeros(slots, np.int64)
    seconds, taken = 0.0, slots
    base, each = fixed * _STEP_AT_0, (1 - fixed) * _STEP_AT_0 / 2048
    while len(left):
        steps = int(left.min())  # that nothing changes in
        keys = at.sum() * steps + len(at) * steps * (steps - 1) // 2
        seconds += steps * (base + each * len(left)) + _KEY * float(keys)
        left, at = left - steps, at + steps
        ended = np.flatnonzero(left == 0)
        new = waiting[taken : taken + len(ended)]
        left[ended[: len(new)]], at[ended[: len(new)]] = new, 0
        taken += len(new)
        left, at = np.delete(left, ended[len(new) :]), np.delete(at, ended[len(new) :])
    return seconds


def together(lengths: NDArray[np.int64], gpus: int, groups: int, fixed: float) -> float:
    """Return the seconds that several GPUs take together: those of the slowest, group after group.

    Args:
        lengths: tokens of documents.
        gpus: which are given documents in equal sums (`codec.text.workers.portions`).
        groups: so many times GROUP_TEXT are decoded together.
        fixed: as of `decode_seconds`.
    """
    ends, size = np.cumsum(lengths), groups * GROUP_TEXT * TEXT_TOKENS / TEXT_BYTES
    seconds = 0.0
    for group in np.split(lengths, np.searchsorted(ends, np.arange(size, ends[-1], size))):
        shares = portions(group.tolist(), gpus)
        seconds += max((decode_seconds(group[np.array(share)], fixed) for share in shares), default=0.0)
    return seconds


def speed_ups(tokens: float, counts: Sequence[int]) -> dict[str, list[tuple[float, float]]]:
    """Return for either size of groups and each number of GPUs the speed-up over one GPU, by the values of FIXED."""
    lengths = documents(tokens)
    alone = [together(lengths, 1, 1, fixed) for fixed in FIXED]

    def pair(gpus: int, groups: int) -> tuple[float, float]:
        first, second = (one / together(lengths, gpus, groups, fixed) for one, fixed in zip(alone, FIXED, strict=True))
        return first, second

    return {
        "64 MiB of text for each GPU": [pair(n, n) for n in counts],
        "64 MiB for all together": [pair(n, 1) for n in counts],
    }


def picture(found: dict[float, dict[str, list[tuple[float, float]]]], counts: Sequence[int]) -> Figure:
    """Draw the speed-up over the number of GPUs, a panel for each amount of text in bytes."""
    with rc_context(STYLE):
        figure = new_figure(3.6)
        panels: Sequence[Axes] = figure.subplots(1, len(found), sharey=True)
        for axes, (size, lines) in zip(panels, found.items(), strict=True):
            axes.plot(counts, counts, color=INK, linestyle=":", linewidth=1.2, label="as many times as GPUs")
            for (name, line), color in reversed(list(zip(lines.items(), (BLUE, GREY), strict=True))):
                axes.fill_between(counts, *np.array(line).T, color=color, alpha=0.3, linewidth=0)
                axes.plot(counts, [sum(pair) / 2 for pair in line], "o-", color=color, label=name, markersize=4)
            axes.set(title=f"{size / 1e6:,.0f} MB of web text", xlabel="GPUs", xticks=counts)
        panels[0].set_ylabel("decoding speed over one GPU's")
        panels[0].legend(loc="upper left", fontsize=8.5)
    return figure


def cost_rows(price: float, size: float = 1e12) -> list[tuple[str, float, float, float]]:
    """Return (work, tokens a second, GPU hours, price) of coding `size` bytes, at the measured speeds."""
    rows = []
    for name, speed in (("encode", ENCODE), ("decode", DECODE)):
        hours = size * TEXT_TOKENS / TEXT_BYTES / speed / 3600
        rows.append((name, speed, hours, hours * price))
    return rows


def main() -> None:
    """Print the tables, and draw the picture."""
    parser = ArgumentParser(prog="python -m eval.bench.scaling", description="What a terabyte costs.")
    parser.add_argument("--price", type=float, required=True, help="Of a GPU hour.")
    parser.add_argument("-o", "--output", type=Path, help="The picture.")
    options = parser.parse_args()
    out = sys.stdout
    out.write("work, tokens a second, GPU hours for a terabyte, price\n")
    for name, speed, hours, price in cost_rows(options.price):
        out.write(f"{name}, {speed:,.0f}, {hours:,.0f}, {price:,.0f}\n")
    counts = (1, 2, 4, 8)
    found = {factor * TEXT_BYTES: speed_ups(factor * TEXT_TOKENS, counts) for factor in (1, 8)}
    for size, lines in found.items():
        for name, line in lines.items():
            told = ", ".join(f"{n}: {min(pair):.2f} to {max(pair):.2f}" for n, pair in zip(counts, line, strict=True))
            out.write(f"{size / 1e6:,.0f} MB, {name}: {told}\n")
    if options.output:
        with atomic_write(options.output) as file:
            file.write(svg(picture(found, counts)))


if __name__ == "__main__":
    main()
