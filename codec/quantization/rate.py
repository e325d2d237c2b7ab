"""Rate control: find the finest step whose pack, really written, meets a byte budget."""

import math
from collections.abc import Callable

from codec.errors import BudgetError

SLACK = 2000
"""Bytes under the budget that end the search."""

_TRIES = 12
_LEAST_RATE = 0.25  # bits a weight below which no model is worth packing


def finest_within(
    budget: int, build: Callable[[float], bytes], weights: int, unit: float, finest: float = 0.0
) -> bytes:
    """Return the pack of the finest unit that fits the budget.

    Halving the unit costs about one bit a weight, which gives each guess; the guesses close in on the budget from both
    sides.

    Args:
        budget: bytes.
        build: returns the pack of a unit.
        weights: how many weights the unit applies to.
        unit: the first guess.
        finest: the finest useful unit: its pack is returned if it fits.

    Raises:
        BudgetError: even at a quarter of a bit a weight the pack is too big.
    """
    best, smallest = b"", 1 << 62
    low, high = -math.inf, math.inf  # log2 of units that are too fine, and of units that fit
    guess = math.log2(unit)
    floor = math.log2(finest) if finest else -math.inf
    for _ in range(_TRIES):
        guess = max(guess, floor)
        blob = build(2.0**guess)
        smallest = min(smallest, len(blob))
        if len(blob) <= budget:
            high = guess
            if len(blob) > len(best):
                best = blob
            if budget - len(blob) <= SLACK or guess == floor:
                break
        else:
            low = guess
        octaves = 8 * (len(blob) - budget + SLACK / 2) / max(1, weights)  # how much coarser the step must be
        guess = min(max(guess + octaves, guess - 4), guess + 4)
        if not low < guess < high:
            guess = (low + high) / 2
        if not best and 8 * len(blob) < _LEAST_RATE * weights:
            break
    if not best:
        raise BudgetError(
            f"budget of {budget} bytes: the smallest pack reached has {smallest}; raise the budget or shrink the model",
            smallest,
        )
    return best
