"""codec.model.capitals: folding is exact on any bytes, its marks go where they are said to go, and lengths add up."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from codec.model.capitals import MARKS, count_text, fold, unfold
from trainer.data.sample import val_documents

ANY = st.one_of(
    st.binary(), st.text().map(str.encode), st.lists(st.sampled_from(list(b"aZz B\x10\x11\x12.\xc3"))).map(bytes)
)
"""Bytes, text, and what is dense with capitals, spaces and marks."""

EXAMPLES = [
    (b"The cat", b"\x10the cat"),
    (b"a The cat", b"a\x10 the cat"),
    (b"end. The", b"end.\x10 the"),
    (b"two  The", b"two \x10 the"),
    (b"by NASA, I", b"by\x11 nasa,\x10 i"),
    (b"I A IT", b"\x10i\x10 a\x11 it"),
    (b"an iPod", b"an i\x10pod"),
    (b"a McDonald", b"a\x10 mc\x10donald"),
    (b"NASAs", b"\x10n\x10a\x10s\x10as"),
    (b'"Hello\nWorld', b'"\x10hello\n\x10world'),
    (b"\x10a\x11B\x12", b"\x12aa\x12b\x10b\x12c"),
    ("ÉTÉ É".encode(), "É\x10tÉ É".encode()),
    (b"A\xffB", b"\x10a\xff\x10b"),
    (b"", b""),
]


@pytest.mark.parametrize("text, folded", EXAMPLES)
def test_marks_are_where_they_should_be(text, folded):
    assert fold(text) == folded
    assert unfold(folded) == text


@given(ANY)
@example(b"NASA\x10xY")
@example(b" \x12A")
def test_unfolding_restores_any_bytes(text):
    folded = fold(text)
    assert unfold(folded) == text
    assert not any(65 <= byte <= 90 for byte in folded)
    assert count_text(folded) == len(text)


@given(ANY)
@example(b"\x12\x10")
@example(b"\x10 \x11 ab\x12")
def test_whatever_is_unfolded_has_the_bytes_that_are_no_marks(folded):
    assert len(unfold(folded)) == count_text(folded) == sum(byte not in MARKS for byte in folded)


def test_real_text():
    text = b"\n".join(val_documents())
    assert unfold(fold(text)) == text
    assert len(fold(text)) < 1.05 * len(text)


def test_long_words_are_read_once():
    """A million letters: were every one of them a beginning, this would take hours and run into the time limit."""
    for word in (b"a" * 1_000_000, b"A" * 1_000_000, b"aB" * 200_000, b" " * 1_000_000 + b"A"):
        assert unfold(fold(word)) == word
