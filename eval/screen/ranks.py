"""Agreement of two screens on the ranks of variants: a short recipe beside the long run that it stands for.

Compared are differences from each screen's own recipe. The errors of the differences lower a correlation: screens of a
single seed agree less than their recipes would.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from codec.errors import CodecError, FormatError
from codec.files import read_bytes
from eval.screen.compare import names_of
from eval.screen.tables import RESULTS, Effect, difference_of
from eval.screen.variants import BASE
from eval.tables import markdown

SHUFFLES = 20_000
"""Random orders with which a correlation is compared."""


@dataclass(frozen=True)
class Ranked:
    """A variant in both screens; ranks count from 1, the best, and equal differences share the mean of their ranks."""

    first: Effect
    second: Effect
    first_rank: float
    second_rank: float

    @property
    def variant(self) -> str:
        """Return the name of the variant."""
        return self.first.variant

    @property
    def same_direction(self) -> bool:
        """Return whether both screens find the variant better than the recipe, or both do not."""
        return (self.first.difference < 0) == (self.second.difference < 0)


@dataclass(frozen=True)
class Ranking:
    """Two screens of the same variants, by name.

    Attributes:
        first: name of the one screen.
        second: name of the other screen.
        ranked: the variants of both screens, in the order of the second.
        alone: variants of one screen only.
        rho: Spearman's rank correlation; None if all differences of a screen are equal.
        p: the share of random orders whose correlation is at least as far from 0.
    """

    first: str
    second: str
    ranked: list[Ranked]
    alone: list[str]
    rho: float | None
    p: float | None


def rank(first: Path, second: Path) -> Ranking:
    """Compare the folders of two screens.

    Raises:
        FormatError: a folder has no results of a screen.
        CodecError: the scores are of different policies, or fewer than three variants are in both.
    """
    (policy, before), (other, after) = read_screen(first), read_screen(second)
    if policy != other:
        raise CodecError(
            f"{first} has {policy} scores, {second} has {other}; repeat one command with the other --policy"
        )
    common = [name for name in after if name in before]
    if len(common) < 3:
        raise CodecError(f"{first} and {second} have {len(common)} variants in common, expected at least 3: {common}")
    differences = [[effects[name].difference for name in common] for effects in (before, after)]
    ranks = [ranks_of(values) for values in differences]
    ranked = [
        Ranked(before[name], after[name], a, b) for name, a, b in zip(common, *(r.tolist() for r in ranks), strict=True)
    ]
    ranked.sort(key=lambda row: row.second_rank)
    names = names_of([first, second])
    return Ranking(names[0], names[1], ranked, sorted(set(before) ^ set(after)), *spearman(*ranks))


def read_screen(folder: Path) -> tuple[str, dict[str, Effect]]:
    """Return the policy of a screen's scores and the effects of its variants, without the recipe's own effect.

    Raises:
        FormatError: `folder` has no results of a screen.
    """
    path = folder / RESULTS
    try:
        found = json.loads(read_bytes(path, "results of a screen"))
        effects = [Effect(**values) for values in found["variants"]]
        return str(found["policy"]), {effect.variant: effect for effect in effects if effect.variant != BASE}
    except FormatError:
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise FormatError(f"{path}: not what `underpar screen` writes ({error!r})") from error


def ranks_of(values: Sequence[float]) -> NDArray[np.float64]:
    """Return the rank of each value [N], the lowest 1; equal values share the mean of their ranks."""
    array = np.asarray(values)
    return (array[:, None] > array).sum(1) + ((array[:, None] == array).sum(1) + 1) / 2


def spearman(first: NDArray[np.float64], second: NDArray[np.float64]) -> tuple[float | None, float | None]:
    """Return the correlation of ranks [N], and the share of random orders as far from 0; None for constant ranks."""
    x, y = first - first.mean(), second - second.mean()
    norm = float(np.linalg.norm(x) * np.linalg.norm(y))
    if not norm:
        return None, None
    orders = np.random.default_rng(0).permuted(np.tile(y, (SHUFFLES, 1)), axis=1)
    rho, shuffled = float(x @ y) / norm, orders @ x / norm
    as_far = int((np.abs(shuffled) >= abs(rho) - 1e-12).sum())
    return rho, (1 + as_far) / (1 + SHUFFLES)  # the measured order counts as one of them


def as_json(ranking: Ranking) -> dict[str, Any]:
    """Return a ranking as plain values.

    Fields: `first`, `second`, `rho`, `p`, `variants` (each with `ranks` and `differences` in both), `same_direction`
    (the number of such variants), and `alone`.
    """
    return {
        "first": ranking.first,
        "second": ranking.second,
        "rho": ranking.rho,
        "p": ranking.p,
        "same_direction": sum(row.same_direction for row in ranking.ranked),
        "variants": [
            {
                "variant": row.variant,
                "ranks": [row.first_rank, row.second_rank],
                "differences": [row.first.difference, row.second.difference],
                "errors": [row.first.difference_error, row.second.difference_error],
            }
            for row in ranking.ranked
        ],
        "alone": ranking.alone,
    }


def as_markdown(ranking: Ranking) -> str:
    """Return a row for each variant, in the order of the second screen."""
    return markdown(heads(ranking), [cells(row) for row in ranking.ranked])


def heads(ranking: Ranking) -> list[str]:
    """Return the heads of the columns of `cells`."""
    return ["variant", *(f"{what}, {name}" for what in ("rank", "change") for name in (ranking.first, ranking.second))]


def cells(row: Ranked) -> list[str]:
    """Format a variant for people: its name, both ranks, both differences."""
    ranks = [f"{rank:g}" for rank in (row.first_rank, row.second_rank)]
    return [row.variant.replace("_", " "), *ranks, difference_of(row.first), difference_of(row.second)]


def verdict(ranking: Ranking) -> str:
    """Return one line on how well the orders agree."""
    same, count = sum(row.same_direction for row in ranking.ranked), len(ranking.ranked)
    if ranking.rho is None:
        return "all variants of a screen change alike: there is no order to compare"
    rho = f"{ranking.rho:.2f}".replace("-", "−")
    return f"Spearman's ρ {rho} (p {ranking.p:.2g}); {same} of {count} variants change in the same direction"
