"""Batches: against rows cut from the joined stream, over ranks, across epochs, and after a restart."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from codec.errors import CodecError, FormatError, MismatchError
from trainer.data.batches import Batches, permuted
from trainer.data.reorder import Reordered, document_places
from trainer.data.shards import write_shard

VOCABULARY = 1 << 16


def stream(folder: Path, *lengths: int) -> list[Path]:
    """Shards whose token at position i of the stream is i."""
    paths = []
    start = 0
    for i, length in enumerate(lengths):
        paths.append(folder / f"x_train_{i:06d}.bin")
        write_shard(paths[-1], np.arange(start, start + length))
        start += length
    return paths


def test_rows_are_windows_of_the_stream_and_targets_are_next(tmp_path: Path) -> None:
    batches = Batches(stream(tmp_path, 5, 0, 1, 30, 6), seq_len=4, vocab_size=VOCABULARY)
    assert (batches.tokens, batches.rows) == (42, 10)
    seen = []
    for n in range(2):
        inputs, targets = batches.take(5 * n, 5)
        assert inputs.shape == targets.shape == (5, 4)
        assert inputs.dtype == targets.dtype == np.int64
        assert (targets == inputs + 1).all()
        assert (inputs == inputs[:, :1] + np.arange(4)).all()
        seen += inputs[:, 0].tolist()
    assert sorted(seen) == list(range(0, 40, 4))
    assert seen != sorted(seen)


def test_ranks_share_the_batch_that_one_rank_would_get(tmp_path: Path) -> None:
    paths = stream(tmp_path, 100, 57)
    alone = Batches(paths, 3, VOCABULARY, seed=5)
    for world in (2, 4, 8):
        ranks = [Batches(paths, 3, VOCABULARY, seed=5, rank=rank, world=world) for rank in range(world)]
        for n in (0, 6, 7, 1000):  # 52 rows: batch 6 begins the second epoch
            for i in (0, 1):
                assert (np.concatenate([rank.take(8 * n, 8)[i] for rank in ranks]) == alone.take(8 * n, 8)[i]).all()


def test_a_batch_depends_on_nothing_but_seed_and_number(tmp_path: Path) -> None:
    paths = stream(tmp_path, 400)
    first = Batches(paths, 3, VOCABULARY, seed=5)
    for n in range(50):
        first.take(4 * n, 4)
    assert (first.take(68, 4)[0] == Batches(paths, 3, VOCABULARY, seed=5).take(68, 4)[0]).all()
    assert (first.take(68, 4)[0] != Batches(paths, 3, VOCABULARY, seed=6).take(68, 4)[0]).any()


def test_epochs_are_whole_and_ordered_differently(tmp_path: Path) -> None:
    batches = Batches(stream(tmp_path, 64), seq_len=3, vocab_size=VOCABULARY)
    rows = np.concatenate([batches.take(7 * n, 7)[0][:, 0] // 3 for n in range(9)]).reshape(3, 21)
    assert (np.sort(rows, axis=1) == np.arange(21)).all()
    assert len({tuple(epoch) for epoch in rows.tolist()}) == 3


def test_the_order_is_pinned() -> None:
    # A change would give a resumed run other data than it began with.
    assert permuted(np.arange(10), 10, (7, 0)).tolist() == [7, 4, 6, 9, 0, 2, 5, 3, 8, 1]


@given(st.integers(1, 3000), st.integers(0, 1 << 40), st.integers(0, 1 << 20))
def test_permuted_is_a_permutation(size: int, seed: int, epoch: int) -> None:
    out = permuted(np.arange(size), size, (seed, epoch))
    assert sorted(out.tolist()) == list(range(size))


def test_permuted_spreads_neighbours() -> None:
    size = 100_000
    out = permuted(np.arange(size), size, (1, 2))
    steps = np.abs(np.diff(out)) / size
    # Two independent uniform numbers differ by 1/3 on average, with a standard deviation of 1/sqrt(18).
    assert abs(steps.mean() - 1 / 3) < 0.01
    assert abs(steps.std() - 18**-0.5) < 0.01
    assert abs(np.corrcoef(np.arange(size), out)[0, 1]) < 0.02
    # Consecutive batches of 100 cover the ten tenths of the stream evenly.
    tenths = np.apply_along_axis(np.bincount, 1, (out * 10 // size).reshape(-1, 100), minlength=10)
    assert abs(tenths.var() - 9) < 1


def test_bad_settings_are_refused(tmp_path: Path) -> None:
    paths = stream(tmp_path, 10)
    with pytest.raises(CodecError, match="multiple of 4"):
        Batches(paths, 3, VOCABULARY, world=4).take(0, 6)
    with pytest.raises(FormatError, match="at least 11"):
        Batches(paths, 10, VOCABULARY)
    assert Batches(paths, 9, VOCABULARY).rows == 1
    with pytest.raises(FormatError, match="0 tokens"):
        Batches([], 10, VOCABULARY)


def test_a_token_outside_the_vocabulary_is_reported_with_its_place(tmp_path: Path) -> None:
    paths = stream(tmp_path, 6, 7)
    batches = Batches(paths, 3, vocab_size=9)
    with pytest.raises(MismatchError, match=r"x_train_000001.bin: token \d+ at position \d"):
        batches.take(0, 4)


def test_from_the_second_epoch_on_documents_are_shuffled_and_cut_anew(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    documents = [np.append(1, rng.integers(2, 100, rng.integers(0, 9))) for _ in range(40)]
    tokens = np.concatenate(documents)
    for cuts in ([], [33, 100]):
        paths = []
        for i, part in enumerate(np.split(tokens, cuts)):
            paths.append(tmp_path / f"{len(cuts)}_train_{i:06d}.bin")
            write_shard(paths[-1], part)
        batches = Batches(paths, 4, VOCABULARY, seed=3)
        streams = []
        for epoch in range(4):
            numbers = np.arange(batches.rows) + epoch * batches.rows
            inputs, targets = batches.take(int(numbers[0]), batches.rows)
            rows = np.concatenate([inputs, targets[:, -1:]], axis=1)[np.argsort(batches._order(numbers))]
            assert (rows[:-1, -1] == rows[1:, 0]).all()
            streams.append(np.append(rows[:, :-1], rows[-1, -1]))
        assert (streams[0] == tokens[: len(streams[0])]).all()
        left = sorted(document.tolist() for document in documents)
        for stream in streams[1:]:
            found = sorted(part.tolist() for part in np.split(stream, np.flatnonzero(stream == 1))[1:-1])
            assert len(found) >= 37  # the end of the last row cuts a document and may lack others
            assert all(found.count(document) <= left.count(document) for document in found)
        assert len({stream.tobytes() for stream in streams}) == 4


def test_tokens_before_the_first_document_are_one_of_their_own() -> None:
    shards = [np.array([5, 6]), np.array([7, 1, 8]), np.array([1, 1])]
    places = document_places(shards, 1)
    assert places.tolist() == [0, 3, 5, 6, 7]
    joined = np.concatenate(shards)
    new = Reordered(places, np.array([2, 0, 3, 1]))
    wanted = [1, 5, 6, 7, 1, 1, 8]
    for position in range(8):
        for length in range(8 - position):
            pieces = [joined[at : at + size] for at, size in new.pieces(position, length)]
            assert [int(token) for piece in pieces for token in piece] == wanted[position : position + length]
