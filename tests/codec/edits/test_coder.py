"""codec.edits.coder: any bytes from any other bytes, through the aligner and the coder."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from codec.edits import coder as patch
from codec.entropy import range_coder
from codec.errors import FormatError

TEXTS = st.binary(max_size=80) | st.text("ab .\n", max_size=300).map(str.encode)


def as_array(data: bytes) -> NDArray[np.uint8]:
    return np.frombuffer(data, np.uint8)


def apply(canonical: bytes, original: bytes, edits: patch.Edits) -> bytes:
    """What the edits say, by slicing; also that they are in order, and that what follows an insertion is copied."""
    out, at = b"", 0
    for position, delete, begin, insert in edits.tolist():
        assert position >= at
        assert delete or insert
        out += canonical[at:position] + original[begin : begin + insert]
        at = position + delete
        assert at <= len(canonical)
    assert (np.diff(edits[:, 0]) >= np.maximum(edits[:-1, 1], 1)).all()
    return out + canonical[at:]


def put(canonical: bytes, original: bytes, lossy: bool = True) -> bytes:
    edits = patch.align(as_array(canonical), as_array(original))
    assert apply(canonical, original, edits) == original
    state, out = range_coder.new_encoder(), np.zeros(patch.edits_capacity(as_array(canonical), edits), np.uint8)
    patch.put_edits(state, out, as_array(canonical), as_array(original), edits, lossy)
    assert state[2] + 8 <= len(out)
    return out[: range_coder.finish(state, out)].tobytes()


def take(data: bytes, canonical: bytes, lossy: bool = True) -> bytes:
    state = range_coder.new_encoder()
    range_coder.start_decoder(state, as_array(data))
    return patch.take_edits(state, as_array(data), canonical, lossy)


def assert_returns(canonical: bytes, original: bytes) -> int:
    data = put(canonical, original)
    assert take(data, canonical) == original
    return len(data)


@given(TEXTS, TEXTS)
@example(b"", b"")
@example(b"", b"\0" * 1000)
@example(b"a" * 1000, b"")
@example(b"abc" * 100, b"abc" * 99 + b"abd")
def test_any_bytes_from_any_bytes(canonical, original):
    assert_returns(canonical, original)


@given(TEXTS, st.lists(st.tuples(st.integers(0, 300), st.integers(0, 90), st.binary(max_size=90)), max_size=6))
def test_a_few_changes(text, changes):
    changed = text
    for position, delete, insert in changes:
        changed = changed[:position] + insert + changed[position + delete :]
    assert_returns(text, changed)
    assert_returns(changed, text)


@pytest.mark.parametrize("byte", [0, 32, 97, 255])
def test_long_runs(byte):
    """Runs are coded in almost no bits, at one end of the range, where a decoder could think the stream has ended."""
    run = bytes([byte]) * 100_000
    assert assert_returns(b"hello", b"hello" + run) < 100
    assert assert_returns(b"", run) < 100
    assert assert_returns(b"x" + run, b"y" + run) < 200
    assert assert_returns(run, b"") < 30


def test_what_normalising_tokenizers_lose_is_cheap():
    lines = [f"This is line {i} of a text, and it is about as long as lines are." for i in range(300)]
    canonical, original = " ".join(lines).encode(), "\n".join(lines).encode()
    edits = patch.align(as_array(canonical), as_array(original))
    assert len(edits) == 299
    assert edits[:, [1, 3]].tolist() == [[1, 1]] * 299
    assert assert_returns(canonical, original) * 8 < 3 * len(edits)


def test_nothing_to_edit_costs_nothing():
    text = b"No edits. " * 1000
    assert put(text, text) == b""


def test_an_alignment_is_found_again_within_its_reach():
    text = bytes(np.random.default_rng(0).integers(0, 256, 4000, np.uint8))
    edits = patch.align(as_array(text), as_array(text[:1000] + b"!" * 60 + text[1064:]))
    assert edits.tolist() == [[1000, 64, 1000, 60]]


@given(st.binary(max_size=40), TEXTS)
def test_garbage_gives_an_error_or_bytes_in_bounded_memory(data, canonical):
    try:
        found = take(data, canonical)
    except FormatError as error:
        assert "ends inside the edits" in str(error) or "does not end with its document" in str(error)
    else:
        assert len(found) <= len(canonical) + 10_000 * (len(data) + 20)


def test_truncated_edits_are_told():
    original = bytes(np.random.default_rng(0).integers(0, 256, 500, np.uint8))
    data = put(b"", original)
    told = 0
    for size in range(len(data)):
        try:
            assert take(data[:size], b"") != original  # an archive's CRC-32 sees that
        except FormatError as error:
            assert f"record of {size} bytes" in str(error)
            told += 1
    assert told > 0.9 * len(data)


def test_golden_bytes():
    canonical, original = b"One line. Another line, of text.", b"One line.\nAnother  line, of TEXT!"
    assert put(canonical, original).hex() == "ff7bfeb42ae72d512c0ea45b2486"
