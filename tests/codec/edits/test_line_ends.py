"""Line ends come back whatever they are, and cost next to nothing where they are all the same."""

import doctest

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from codec.edits import line_ends
from codec.entropy import range_coder


def coded(kinds: np.ndarray) -> tuple[np.ndarray, int]:
    """The kinds decoded from their code, and the size of that."""
    state, out = range_coder.new_encoder(), np.zeros(line_ends.room(len(kinds)) + 64, np.uint8)
    line_ends.code(state, out, kinds.copy(), False)
    code = out[: range_coder.finish(state, out)].copy()
    found, state = np.zeros(len(kinds), np.uint8), np.zeros(3, np.uint64)
    range_coder.start_decoder(state, code)
    line_ends.code(state, code, found, True)
    assert range_coder.ended(state, len(code))
    return found, len(code)


def test_examples():
    assert doctest.testmod(line_ends).failed == 0


@given(st.text("a\r\n", max_size=40).map(str.encode))
def test_any_line_ends(data):
    text, kinds = line_ends.split(data)
    assert b"\r" not in text
    assert line_ends.join(text, kinds) == data
    assert np.array_equal(coded(kinds)[0], kinds)


def test_text_with_line_feeds_only_is_left_alone():
    text, kinds = line_ends.split(b"a\n\nb")
    assert (text, len(kinds)) == (b"a\n\nb", 0)


@pytest.mark.parametrize("kind", [0, 1, 2])
def test_equal_line_ends_cost_a_few_bytes(kind):
    kinds = np.full(20_000, kind, np.uint8)
    kinds[-1] = 1
    found, size = coded(kinds)
    assert np.array_equal(found, kinds)
    assert size <= 8


def test_a_wrong_number_of_kinds_ends_no_earlier():
    """A damaged record may say that there are fewer or more line ends than its text has."""
    assert line_ends.join(b"a\nb\n", np.array([1], np.uint8)) == b"a\r\nb\n"
    assert line_ends.join(b"a\nb", np.array([1, 1, 1], np.uint8)) == b"a\r\nb"
