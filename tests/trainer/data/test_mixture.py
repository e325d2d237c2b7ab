"""Mixtures: each source has its share, no row is lost, and ranks, restarts and weights agree with the definition."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from codec.errors import CodecError
from trainer.data.batches import Batches
from trainer.data.mixture import PERIOD, Mixed, apportion
from trainer.data.shards import write_shard


def sources(folder: Path, *rows: int) -> list[Batches]:
    """Sources of rows of 2 tokens whose tokens say which source and which row they are."""
    found = []
    for number, count in enumerate(rows):
        path = folder / f"{number}_train_000000.bin"
        write_shard(path, np.repeat(np.arange(count + 1) + 10_000 * (number + 1), 2)[: 2 * count + 1])
        found.append(Batches([path], 2, 1 << 16, seed=number))
    return found


def test_shares_are_of_weights_and_no_row_comes_twice_before_all_came(tmp_path: Path) -> None:
    weights = [1.0, 3.0, 0.5]
    mixed = Mixed(sources(tmp_path, 600, 200, 400), weights, seed=4)
    assert (mixed.rows, mixed.tokens) == (1400, 601 * 2 - 1 + 3 * (201 * 2 - 1) + (401 * 2 - 1) // 2)
    rows = np.concatenate([mixed.take(first, 64)[0][:, 0] for first in range(0, 2 * PERIOD, 64)])
    counts = Counter((rows // 10_000).tolist())
    assert [counts[n] for n in (1, 2, 3)] == [2 * n for n in apportion(np.array([600.0, 600.0, 200.0]), PERIOD)]
    for source, length in ((1, 600), (2, 200), (3, 400)):
        mine = rows[rows // 10_000 == source]
        whole = mine[: len(mine) // length * length].reshape(-1, length)
        assert all(len(set(epoch.tolist())) == length for epoch in whole)
    part = Counter((rows[: PERIOD // 8] // 10_000).tolist())  # spread, not one source after another
    assert all(0.6 < part[n] / (counts[n] / 16) < 1.5 for n in (1, 2, 3))


def test_ranks_share_the_batch_and_a_position_says_all(tmp_path: Path) -> None:
    all_sources = sources(tmp_path, 30, 70)
    alone = Mixed(all_sources, [1, 2], seed=1)
    ranks = [Mixed(all_sources, [1, 2], seed=1, rank=rank, world=4) for rank in range(4)]
    for first in (0, 8, PERIOD - 4, 3 * PERIOD + 12):
        for i in (0, 1):
            assert (np.concatenate([rank.take(first, 8)[i] for rank in ranks]) == alone.take(first, 8)[i]).all()
    assert (Mixed(all_sources, [1, 2], seed=2).take(0, 64)[0] != alone.take(0, 64)[0]).any()
    with pytest.raises(CodecError, match="multiple of 4"):
        ranks[0].take(0, 6)


def test_weights_that_cannot_be_are_refused(tmp_path: Path) -> None:
    both = sources(tmp_path, 1000, 10)
    for weights in ([1, 0], [1, -1]):
        with pytest.raises(CodecError, match="above 0"):
            Mixed(both, weights)
    with pytest.raises(CodecError, match="source 2 of 2 is less than"):
        Mixed(both, [1, 0.001])


@given(st.lists(st.floats(0.001, 1000), min_size=1, max_size=20), st.integers(0, 5000))
def test_apportion(wanted: list[float], total: int) -> None:
    found = apportion(np.array(wanted), total)
    exact = np.array(wanted) * total / sum(wanted)
    assert found.sum() == total
    assert (np.abs(found - exact) < 1).all()
