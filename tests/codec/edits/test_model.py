"""Priors and contexts of edits: within their tables, in order, and better than none."""

import base64

import numpy as np
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from codec.edits import coder as patch
from codec.edits import contexts as edit_contexts
from codec.edits import model as edit_model
from codec.edits.contexts import SELECTORS, SIZES
from codec.edits.model import BREAKS, PHRASES, SLOTS
from trainer.data.sample import sp1024
from trainer.fit import edit_priors

LINES = [
    "A Title of Some Words",
    "The first paragraph has two sentences. This is the second one of them.",
    "Another paragraph follows the first, as paragraphs do.",
    "- a point",
    "- another point",
    "“What?” she asked… and that was all (or so it seemed).",
]


@given(st.text("aB1. !,:\"'()-*|$“”—•é\n", max_size=60).map(str.encode) | st.binary(max_size=60))
def test_contexts_stay_within_their_slots(text):
    canonical = np.frombuffer(text, np.uint8)
    words, seen = edit_contexts.words_of(canonical), edit_contexts.new_lines()
    pieces = text.split(b" ")
    assert [text[b:e] for b, e in zip(words.begins, words.ends, strict=True)] == pieces
    contexts, selected = np.empty(len(SIZES), np.int64), np.empty(len(SELECTORS), np.int64)
    for k in range(len(pieces) - 1):
        edit_contexts.look(words, k, len(text), seen, contexts, selected)
        assert ((contexts >= 0) & (contexts < SIZES)).all()
        assert ((selected >= 0) & (selected < SELECTORS)).all()
        edit_contexts.pass_space(words, k, seen, k % 3 == 0)


def test_a_longer_entry_of_the_book_comes_before_one_that_it_begins_with():
    for n, entry in enumerate(BREAKS):
        assert not any(later != entry and later.startswith(entry) for later in BREAKS[n + 1 :])
    assert len({after for _, after in PHRASES}) == len(PHRASES)


def test_sentences_and_words():
    text = b'He said "no." Then (he left!) at 3. ok'
    words = edit_contexts.words_of(np.frombuffer(text, np.uint8))
    assert words.closes.tolist() == [0, 0, 1, 0, 0, 1, 0, 1, 0]
    assert words.kind.tolist() == [1, 0, 0, 1, 0, 0, 0, 2, 0]
    assert words.stop.tolist() == [13, 13, 13, 29, 29, 29, 35, 35, 38]


def test_text_like_the_training_text_is_cheap_and_training_makes_priors():
    tokenizer = sp1024()
    documents = ["\n".join(LINES[n:] + LINES[:n]).encode() for n in range(6)]
    pairs = [(tokenizer.decode(tokenizer.encode(d).astype(np.int64)), d) for d in documents]
    shipped = [edit_priors.run(pair, edit_model.new_model()) for pair in pairs]
    stretched, mixer = edit_model.untrained()
    without = [edit_priors.run(pair, edit_model.make_model(stretched, mixer)) for pair in pairs]
    assert sum(shipped) < 0.6 * sum(without)
    blob = edit_priors.train(edit_priors.changed(documents))
    assert len(blob) == SLOTS + int(SELECTORS.sum()) * edit_model._INPUTS + 36 * len(SELECTORS)
    assert blob == edit_priors.train(edit_priors.changed(documents))


def test_priors_that_ship_are_what_they_should_be():
    packed = base64.b85decode("".join(edit_model.PRIORS.split()))
    blob = zstandard.ZstdDecompressor().decompress(packed)
    assert edit_model.quantized(*edit_model._priors()) == blob
    assert len(packed) < 16_000


def test_every_entry_of_the_book_is_one_edit():
    for before, after in [*PHRASES, *((b" ", b) for b in BREAKS)]:
        canonical, original = b"word" + before + b"tail", b"word" + after + b"tail"
        edits = patch.align(np.frombuffer(canonical, np.uint8), np.frombuffer(original, np.uint8))
        assert edits.tolist() == [[4, len(before), 4, len(after)]]
