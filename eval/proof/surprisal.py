"""Measure the bits of every token of one document under a pack, and render the document coloured by bits as HTML."""

from collections.abc import Iterable, Sequence
from html import escape
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from codec.pack.reader import Pack
from codec.text.documents import prepare
from codec.text.open_coder import make_coder

SCALE = (0.0, 1.0, 2.0, 4.0, 6.0, 8.0, 10.0, 12.0, 14.0, 16.0)
"""The least bits of each colour of COLORS; the last colour has no upper limit."""

COLORS = ("#ffffff", "#fff8e1", "#ffefbf", "#ffe29a", "#ffd078", "#ffbb62", "#ffa25c", "#fb8b60", "#f4766a", "#e9687c")
"""Colours from expected to surprising; black text is legible on every colour."""

END = "end of document"


class Piece(NamedTuple):
    """A token: the bytes that the token stands for (empty for the end of the document) and its surprisal in bits."""

    text: bytes
    bits: float


def surprisal(pack: Pack, document: bytes) -> list[Piece]:
    """List the tokens of a document, the end last, and the bits of each under the pack's integer frequencies.

    Raises:
        MismatchError: the pack holds weights only.
    """
    coder = make_coder(pack)
    prepared = prepare(document, coder.tokenizer, model_only=True)
    ((_, frequencies, _),) = coder.intervals([prepared])
    bits = coder.total_bits - np.log2(frequencies)
    texts = [*coder.tokenizer.split(prepared.stream[1:-1]), b""]
    return [Piece(text, float(cost)) for text, cost in zip(texts, bits, strict=True)]


def characters(pieces: Iterable[Piece]) -> list[Piece]:
    """Join neighbouring pieces until each is whole characters: a character may be several tokens of one byte.

    Bytes that belong to no character stay as they are. A token without text, such as the mark before a capital, is
    joined with the next piece.
    """
    found: list[Piece] = []
    waiting: Piece | None = None
    for piece in pieces:
        if waiting and waiting.text and not (piece.text and 0x80 <= piece.text[0] < 0xC0):
            found.append(waiting)  # the next piece does not continue this character
            waiting = None
        waiting = Piece(waiting.text + piece.text, waiting.bits + piece.bits) if waiting else piece
        if waiting.text and _whole(waiting.text):
            found.append(waiting)
            waiting = None
    return [*found, waiting] if waiting else found


def _whole(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError as error:
        return error.reason != "unexpected end of data"
    return True


def html(pieces: Sequence[Piece]) -> str:
    """Render a fragment of HTML: a legend, and the text with every token on the colour of its surprisal.

    A tooltip tells the bits; newlines are shown as an arrow and a line break. The fragment brings its own style.
    """
    spans = []
    for text, bits in characters(pieces):
        shown = escape(text.decode("utf-8", errors="replace")) or "■"
        shown = shown.replace("\r", "␍").replace("\n", "<i>↵</i>\n")
        name = "" if text else f"{END}: "
        spans.append(f'<span class="s{_level(bits)}" title="{name}{bits:.2f} bits">{shown}</span>')
    colors = "".join(f".surprisal .s{n}{{background:{color}}}" for n, color in enumerate(COLORS))
    return (
        f"<style>{STYLE}{colors}</style>"
        f'<div class="surprisal"><div class="legend">{_legend()}</div><div class="text">{"".join(spans)}</div></div>'
    )


STYLE = (
    ".surprisal .text{white-space:pre-wrap;overflow-wrap:anywhere;line-height:1.75;color:#111}"
    ".surprisal .text span{border-radius:2px;padding:2px 0;box-shadow:inset -1px 0 0 #fff}"
    ".surprisal .text span:hover{outline:2px solid #1f2933}"
    ".surprisal i{color:#6b7684;font-style:normal}"
    ".surprisal .legend{display:flex;flex-wrap:wrap;align-items:center;gap:2px;margin:0 0 14px;font-size:13px}"
    ".surprisal .legend span{padding:2px 9px;border:1px solid #e4e8ee;color:#111}"
)


def _level(bits: float) -> int:
    return max(0, int(np.searchsorted(SCALE, bits, side="right")) - 1)


def _legend() -> str:
    labels = [f"{low:g}–{high:g}" for low, high in pairwise(SCALE)] + [f"over {SCALE[-1]:g}"]
    cells = "".join(f'<span class="s{n}">{label}</span>' for n, label in enumerate(labels))
    return f"bits a token:&ensp;{cells}&ensp;■ the end of the document"
