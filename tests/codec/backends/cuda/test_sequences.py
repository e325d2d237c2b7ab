"""codec.backends.cuda.sequences: how sequences lie behind each other."""

import numpy as np

from codec.backends.cuda.sequences import GRAPH_ROWS, Layout

TOKENS = [np.arange(1, 1 + n) for n in (70, 64, 3)]
TARGETS = [np.arange(n) for n in (2, 64, 1)]


def test_each_sequence_begins_at_a_block_of_its_own():
    layout = Layout.of(TOKENS, TARGETS, on_gpu=False)
    assert layout.firsts.tolist() == [0, 128, 192]
    assert layout.begins.tolist() == [0, 0, 128, 192]
    assert layout.rows.tolist() == [68, 69, *range(128, 192), 194]
    assert [layout.tokens[first] for first in layout.firsts] == [1, 1, 1]
    assert layout.tokens[layout.rows].tolist() == [69, 70, *range(1, 65), 3]
    assert layout.tokens[70:128].tolist() == [0] * 58


def test_rows_behind_the_last_sequence_see_themselves():
    layout = Layout.of(TOKENS[:1] * 3, TARGETS[:1] * 3, on_gpu=False)
    assert len(layout.tokens) == 384
    layout = Layout.of(TOKENS[:1], [TOKENS[0]], on_gpu=False)
    assert layout.begins.tolist() == [0, 0]
    layout = Layout.of(TOKENS[2:], TARGETS[2:], on_gpu=False)
    assert layout.begins.tolist() == [0, 64]


def test_a_gpu_gets_batches_of_the_captured_sizes_where_they_are_half_full():
    few, some = GRAPH_ROWS[0] // 128, GRAPH_ROWS[0] // 128 + 1  # of two blocks each
    assert len(Layout.of(TOKENS[:1] * (few // 2), TARGETS[:1] * (few // 2), on_gpu=True).tokens) == 64 * few
    assert len(Layout.of(TOKENS[:1] * some, TARGETS[:1] * some, on_gpu=True).tokens) == 128 * some
    half = GRAPH_ROWS[0] // 256 + 1
    assert len(Layout.of(TOKENS[:1] * half, TARGETS[:1] * half, on_gpu=True).tokens) == GRAPH_ROWS[0]
