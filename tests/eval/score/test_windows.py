"""eval.score.windows: every input once, starts that do not depend on the length, the challenge's own plans."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codec.errors import CodecError
from eval.score.windows import Window, document_windows, first_targets, flat_windows, sliding_windows

SHAPES = st.integers(1, 40).flatmap(lambda window: st.tuples(st.just(window), st.integers(1, window)))


@given(st.integers(0, 300), SHAPES)
def test_every_input_is_scored_once_and_in_order(length, shape):
    window, stride = shape
    plan = document_windows(length, window, stride)
    assert [i for w in plan for i in range(w.score_from, w.end)] == list(range(length))
    for w in plan:
        assert w.start <= w.score_from < w.end <= w.start + window
        assert w.score_from - w.start >= min(w.score_from, window - stride)


@given(st.integers(0, 300), SHAPES)
def test_sliding_is_the_challenges_plan(tokens, shape):
    """A window every `stride` targets that still has one to score; the first scores all, later ones the last stride."""
    window, stride = shape
    total = max(0, tokens - 1)
    starts = [s for s in range(0, total, stride) if s == 0 or s + window - stride < total]
    expected = [Window(s, min(s + window, total), s + window - stride if s else 0) for s in starts]
    assert sliding_windows(tokens, window, stride) == expected


@pytest.mark.parametrize("tokens, rows", [(0, 0), (1, 0), (8, 0), (9, 1), (16, 1), (17, 2), (24, 2), (25, 3)])
def test_flat_rows_need_a_target_for_their_last_input(tokens, rows):
    assert flat_windows(tokens, 8) == [Window(8 * i, 8 * i + 8, 8 * i) for i in range(rows)]


@given(st.integers(0, 300), st.integers(0, 300), SHAPES)
def test_a_plan_can_stop_after_some_targets(length, targets, shape):
    plan = document_windows(length, *shape)
    cut = first_targets(plan, targets)
    assert [i for w in cut for i in range(w.score_from, w.end)] == list(range(min(length, targets)))
    assert [w.start for w in cut] == [w.start for w in plan[: len(cut)]]


@pytest.mark.parametrize("stride", [0, -1, 9])
def test_a_stride_that_would_skip_inputs_is_refused(stride):
    with pytest.raises(CodecError, match=f"stride {stride} with windows of 8"):
        document_windows(20, 8, stride)
