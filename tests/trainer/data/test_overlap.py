"""Overlaps by words: against sets of words, and on texts that differ in case, spaces and alphabets."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.data.overlap import WORDS, held_out, overlaps, passages

WORD = [f"word{i}" for i in range(40)]


def brute(text: str) -> set[tuple[str, ...]]:
    """The passages of an ASCII text as words."""
    words = re.findall(r"[a-z0-9]+", text.lower())
    return {tuple(words[i : i + WORDS]) for i in range(len(words) - WORDS + 1)}


@given(st.lists(st.lists(st.sampled_from(["a", "b", "ab", "ba", "c"]), max_size=40), min_size=2, max_size=4))
def test_as_sets_of_words(texts: list[list[str]]) -> None:
    first, *rest = [" ".join(words) for words in texts]
    held = held_out(text.encode() for text in rest)
    assert overlaps(first.encode(), held) == bool(brute(first) & set().union(*map(brute, rest)))
    assert len(set(passages(first.encode()).tolist())) == len(brute(first))


def test_twelve_words_are_not_enough() -> None:
    held = held_out([" ".join(WORD[:20]).encode()])
    assert not overlaps(" ".join(["x", *WORD[4:16], "y"]).encode(), held)
    assert overlaps(" ".join(["x", *WORD[4:17], "y"]).encode(), held)


@pytest.mark.parametrize("between", [" ", "\n", ", ", " — "[0:2], "..."])
def test_case_and_what_is_between_words_do_not_count(between: str) -> None:
    held = held_out([" ".join(WORD).encode()])
    assert overlaps(between.join(WORD[3:20]).upper().encode(), held)


def test_other_alphabets_and_bytes_that_are_no_text() -> None:
    words = ["слово", "ещё", "раз", "ÜBER", "straße"] * 4
    text = " ".join(words).encode()
    assert overlaps(text, held_out([" ".join(words).upper().encode()]))
    assert not overlaps(b"\xff\xfe " * 40, held_out([text]))
    assert not overlaps(text, held_out([]))
    assert passages(b"").dtype == np.uint64


def test_order_of_words_and_of_letters_counts() -> None:
    held = held_out([" ".join(WORD).encode()])
    assert not overlaps(" ".join(reversed(WORD)).encode(), held)
    assert not overlaps(" ".join(word[::-1] for word in WORD).encode(), held)
    assert not overlaps("".join(WORD).encode(), held)
