"""Mutated archives and packs are refused with an error of ours, or give exactly what was put in: never wrong bytes."""

import resource
import time
from collections import Counter
from collections.abc import Callable

import pytest

from tests.support.fuzzing import archive_mutation, pack_mutation, solid_mutation

MEMORY = 1 << 29
"""Bytes by which a process may grow while it reads mutations; its own archives and packs have a few thousand."""

Mutation = Callable[[int], tuple[str, str]]


def campaign(mutation: Mutation, count: int) -> None:
    """Check `count` mutations and say what came of them."""
    mutation(0)  # compiles
    before, begin, slowest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter(), 0.0
    found: Counter[tuple[str, str]] = Counter()
    for number in range(count):
        since = time.perf_counter()
        kind, result = mutation(number)
        slowest = max(slowest, time.perf_counter() - since)
        assert result != "wrong", f"{mutation.__name__}({number}), {kind}"
        found[kind, result] += 1
    grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    print(f"{mutation.__name__}: {dict(found)}; {time.perf_counter() - begin:.0f} s, slowest {slowest:.3f} s, {grown=}")
    assert grown < MEMORY
    assert found["damaged", "refused"] > 0.6 * sum(n for (kind, _), n in found.items() if kind == "damaged")
    assert found["forged", "refused"] and found["forged", "right"]


@pytest.mark.parametrize("mutation, count", [(archive_mutation, 1500), (pack_mutation, 1000), (solid_mutation, 800)])
def test_mutations(mutation: Mutation, count: int) -> None:
    campaign(mutation, count)


@pytest.mark.long
@pytest.mark.timeout(7200)
@pytest.mark.parametrize(
    "mutation, count", [(archive_mutation, 50_000), (pack_mutation, 25_000), (solid_mutation, 25_000)]
)
def test_100_000_mutations(mutation: Mutation, count: int) -> None:
    campaign(mutation, count)
