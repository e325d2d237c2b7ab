"""Rate control: find the finest step whose pack, really written, meets a byte budget."""

import math
from collections.abc import Callable
from typing import Protocol, TypeVar

from codec.errors import BudgetError

SLACK = 2000
"""Bytes under a budget of 100,000 bytes or more that end the search; below, 200 bytes do."""

_SMALL_BUDGET, _SMALL_SLACK = 100_000, 200
_TRIES, _SMALL_TRIES = 12, 24


class Sized(Protocol):
    """A pack that was written: bytes, or a file of known length."""

    def __len__(self) -> int: ...


P = TypeVar("P", bound=Sized)


def slack_of(budget: int) -> int:
    """Return how many bytes under `budget` end the search."""
    return SLACK if budget >= _SMALL_BUDGET else _SMALL_SLACK


def finest_within(budget: int, build: Callable[[float], P], weights: int, unit: float, finest: float = 0.0) -> P:
    """Return the pack of the finest unit that fits the budget.

    Halving the unit costs about one bit a weight, which gives each guess; the guesses close in on the budget from both
    sides. Sizes may jump, so the search also ends when both sides are close together.

    Args:
        budget: bytes.
        build: returns the pack of a unit.
        weights: how many weights the unit applies to.
        unit: the first guess.
        finest: the finest useful unit: its pack is returned if it fits.

    Raises:
        BudgetError: even with steps beyond all weights the pack is too big; `smallest` bytes would do.
    """
    best: P | None = None
    smallest, slack = 1 << 62, slack_of(budget)
    low, high = -math.inf, math.inf  # log2 of units that are too fine, and of units that fit
    guess = math.log2(unit)
    floor = math.log2(finest) if finest else -math.inf
    tries = _TRIES if budget >= _SMALL_BUDGET else _SMALL_TRIES
    stuck = False  # a coarser unit did not make the pack smaller
    while best is None or tries > 0:
        tries -= 1
        guess = max(guess, floor)
        pack = build(2.0**guess)
        size = len(pack)
        if size <= budget:
            high = guess
            if best is None or size >= len(best):
                best = pack
            if budget - size <= slack or guess == floor:
                break
        elif best is None and size >= smallest:
            if stuck:
                raise BudgetError(
                    f"budget of {budget} bytes: the smallest pack has {smallest}; raise the budget to that or more",
                    smallest,
                )
            stuck, low = True, guess
        else:
            low = guess
        smallest = min(smallest, size)
        if high - low < 1e-4:
            break
        octaves = 4.0 if stuck and best is None else 8 * (size - budget + slack / 2) / max(1, weights)
        guess = min(max(guess + octaves, guess - 4), guess + 4)  # so much coarser the step must be, about
        if not low < guess < high:
            guess = (low + high) / 2
    assert best is not None  # the loop goes on until a pack fits
    return best
