"""eval.proof.surprisal: the bits of the tokens are those of the record, and the HTML shows the whole text and no
markup.
"""

import re
from html import unescape

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codec.text.open_coder import make_coder
from eval.proof.surprisal import COLORS, END, SCALE, Piece, characters, html, surprisal
from tests.support.helpers import folding_pack, tiny_pack
from trainer.data.sample import val_documents

DOCUMENTS = [b"Some words.\nMore <words> & signs.", "caf\u00e9 \u20ac ▁".encode(), b"", next(val_documents())[:500]]


def text_of(fragment):
    """What a browser shows of the text, tags dropped, each arrow standing for its newline."""
    body = fragment[fragment.index('<div class="text">') :]
    return unescape(re.sub(r"<[^>]*>", "", body.replace("<i>↵</i>\n", "\n")))


@pytest.mark.parametrize("document", DOCUMENTS)
def test_the_bits_are_those_of_the_record(document):
    pieces = surprisal(tiny_pack(), document)
    record = make_coder(tiny_pack()).encode([document], model_only=True)[0]
    assert len(pieces) == record.tokens
    assert sum(piece.bits for piece in pieces) == pytest.approx(record.ideal_bits, rel=1e-12)
    assert min(piece.bits for piece in pieces) >= 0


def test_the_tokens_are_the_canonical_text():
    tokenizer = tiny_pack().tokenizer
    for document in DOCUMENTS:
        text = b"".join(piece.text for piece in surprisal(tiny_pack(), document))
        assert text == tokenizer.decode(tokenizer.encode(document))


def test_folded_text_is_shown_as_it_was():
    document = b"The NASA, and you. I"
    pieces = surprisal(folding_pack(), document)
    assert b"".join(piece.text for piece in pieces) == document
    assert sum(not piece.text for piece in pieces) > 1  # marks
    assert [piece.text for piece in characters(pieces)].count(b"") == 1  # the end of the document
    assert text_of(html(pieces)) == document.decode() + "■"


@given(st.lists(st.tuples(st.binary(max_size=3), st.floats(0, 24)), max_size=12))
def test_joining_characters_keeps_text_and_bits(raw):
    pieces = [Piece(*piece) for piece in raw]
    joined = characters(pieces)
    assert b"".join(p.text for p in joined) == b"".join(p.text for p in pieces)
    assert sum(p.bits for p in joined) == pytest.approx(sum(p.bits for p in pieces))


def test_a_character_of_several_tokens_is_one_piece():
    split = [Piece(b"a", 1.0), Piece(b"\xe2", 2.0), Piece(b"\x82", 3.0), Piece(b"\xac", 4.0), Piece(b"", 5.0)]
    assert characters(split) == [Piece(b"a", 1.0), Piece("€".encode(), 9.0), Piece(b"", 5.0)]


def test_a_broken_character_does_not_swallow_what_follows():
    broken = [Piece(b"\xe2", 2.0), Piece(b"\x82", 3.0), Piece(b"b", 1.0), Piece(b"\xff", 1.0), Piece(b"\xe2", 1.0)]
    texts = [piece.text for piece in characters(broken)]
    assert texts == [b"\xe2\x82", b"b", b"\xff", b"\xe2"]


def test_markup_is_text():
    fragment = html([Piece(b"<script>alert('x')</script>", 3.0), Piece(b' " & ', 1.0), Piece(b"", 0.5)])
    assert "<script" not in fragment
    assert text_of(fragment) == "<script>alert('x')</script> \" & ■"


def test_newlines_are_seen():
    fragment = html([Piece(b"a\n\nb\r\n", 3.0)])
    assert fragment.count("<i>↵</i>\n") == 3
    assert text_of(fragment) == "a\n\nb␍\n"


def test_tooltips_tell_the_bits():
    fragment = html([Piece(b"word", 3.14159), Piece(b"", 0.5)])
    assert 'title="3.14 bits">word<' in fragment
    assert f'title="{END}: 0.50 bits">■<' in fragment


@pytest.mark.parametrize("bits, level", [(0.0, 0), (0.99, 0), (1.0, 1), (15.9, 8), (16.0, 9), (24.0, 9)])
def test_a_colour_stands_for_a_range_of_bits(bits, level):
    assert f'<span class="s{level}" title=' in html([Piece(b"x", bits)])


def test_the_legend_names_every_colour():
    fragment = html([])
    assert len(COLORS) == len(SCALE)
    assert all(f".s{n}{{background:{color}}}" in fragment for n, color in enumerate(COLORS))
    assert all(f'<span class="s{n}">' in fragment for n in range(len(COLORS)))
    assert "bits a token" in fragment


def test_every_colour_is_legible_under_black():
    for color in COLORS:
        channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
        assert (luminance + 0.05) / 0.056 >= 4.5, color  # WCAG's contrast with #111
