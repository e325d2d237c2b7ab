"""codec.quantization.rate: budgets met from every first guess, sizes that do not follow the guess, budgets that cannot
be met.
"""

import math
from collections.abc import Callable

import pytest

from codec.errors import BudgetError
from codec.quantization.rate import SLACK, finest_within

WEIGHTS = 1_000_000


def sized(bits: Callable[[float], float], overhead: int = 5000) -> tuple[Callable[[float], bytes], list[float]]:
    """A pack whose weights cost bits(log2 of the unit), and the units that were tried."""
    tried: list[float] = []

    def build(unit: float) -> bytes:
        tried.append(unit)
        return bytes(overhead + int(WEIGHTS * bits(math.log2(unit)) / 8))

    return build, tried


CURVES: dict[str, Callable[[float], float]] = {
    "a bit an octave": lambda u: max(0.0, 2 - u),
    "less at low rates": lambda u: math.log2(1 + 2.0 ** (2 - u)),
    "a trellis from 2 bits on": lambda u: max(0.0, 2 - u) - 0.01 * (u < 0),
    "slow": lambda u: max(0.0, 4 - u / 2),
    "steep": lambda u: max(0.0, 2 - 1.5 * u),
}


@pytest.mark.parametrize("bits", CURVES.values(), ids=CURVES)
@pytest.mark.parametrize("guess", [2.0**-9, 0.3, 1.0, 30.0])
@pytest.mark.parametrize("budget", [200_000, 400_000, 999_999])
def test_the_budget_is_met_and_used(bits, guess, budget):
    build, tried = sized(bits)
    size = len(finest_within(budget, build, WEIGHTS, guess))
    assert budget - SLACK <= size <= budget
    assert len(tried) <= 12


def test_an_apt_guess_ends_the_search():
    build, tried = sized(CURVES["a bit an octave"])
    size = len(build(0.25))
    assert len(finest_within(size + SLACK, build, WEIGHTS, 0.25)) == size
    assert tried == [0.25, 0.25]


def test_the_largest_that_fits_is_kept():
    """Sizes in steps too large to come near the budget."""
    build, _ = sized(lambda u: float(round(2 - u)))
    assert len(finest_within(300_000, build, WEIGHTS, 1.0)) == 5000 + 250_000


@pytest.mark.parametrize("budget", [0, 4999, 20_000])
def test_a_budget_that_cannot_be_met(budget):
    build, tried = sized(CURVES["less at low rates"], 5000 + (budget == 20_000) * 30_000)
    with pytest.raises(BudgetError, match=f"budget of {budget} bytes: the smallest pack has") as caught:
        finest_within(budget, build, WEIGHTS, 0.5)
    assert caught.value.smallest == min(len(build(unit)) for unit in list(tried))
    assert len(finest_within(caught.value.smallest, build, WEIGHTS, 0.5)) == caught.value.smallest


@pytest.mark.parametrize("budget", [3_000, 30_000, 99_000])
def test_little_of_a_small_budget_stays_unused(budget):
    def build(unit: float) -> bytes:
        return bytes(500 + int(20_000 * math.log2(1 + 1 / unit)))

    assert budget - 200 <= len(finest_within(budget, build, 100_000, 1.0)) <= budget


def test_what_has_one_size():
    assert len(finest_within(100, lambda _: bytes(100), 0, 1.0)) == 100
    with pytest.raises(BudgetError) as caught:
        finest_within(99, lambda _: bytes(100), 0, 1.0)
    assert caught.value.smallest == 100
