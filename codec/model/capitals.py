"""Capitals as marks: text in small letters with marks for capitals, and back, exact on any bytes.

With C, U and E for the control characters that are the marks, `By The NASA iPod` becomes `CbyC theU nasa iCpod`:

- C: the next letter is a capital. With a space before the word, the mark goes before the space: the word keeps the
  token of its small form, and a full stop and the mark can be one token.
- U: all letters up to the next byte that is no letter are capitals.
- E and a small letter: one of the three control characters itself.

Only the letters of ASCII have marks, so the result depends on no version of Unicode. A mark stands for no byte of text
and every other byte for exactly one, in any order: lengths can be counted token by token.
"""

import re

CAPITAL, CAPITALS, ESCAPE = b"\x10", b"\x11", b"\x12"
MARKS = CAPITAL + CAPITALS + ESCAPE

_CODES = {CAPITAL: b"a", CAPITALS: b"b", ESCAPE: b"c"}
_LITERALS = {code: mark for mark, code in _CODES.items()}

# A word never begins behind a letter: otherwise a long run of small letters would be scanned from each of its letters.
_WORD = re.compile(rb" ?(?<![A-Za-z])[a-z]*+[A-Z][A-Za-z]*+|[\x10-\x12]")
_LETTER = re.compile(rb"[A-Z]")
_MARKED = re.compile(rb"\x10( ?[a-z]?)|\x11( ?[a-z]*+)|\x12([^\x10-\x12]?)", re.DOTALL)


def fold(text: bytes) -> bytes:
    r"""Replace capitals by small letters with marks.

    >>> fold(b"By The NASA")
    b'\x10by\x10 the\x11 nasa'
    """
    return _WORD.sub(_folded, text)


def unfold(folded: bytes) -> bytes:
    """Restore the text that was folded; marks in places where `fold` never puts them are dropped."""
    return _MARKED.sub(_unfolded, folded)


def count_text(folded: bytes) -> int:
    """Return the number of bytes that `unfold` would return.

    >>> count_text(fold(b"By The NASA"))
    11
    """
    return len(folded.translate(None, MARKS))


def _folded(match: re.Match[bytes]) -> bytes:
    found = match[0]
    if found in _CODES:
        return ESCAPE + _CODES[found]
    word = found.removeprefix(b" ")
    space, small = found[: len(found) - len(word)], word.lower()
    if word[1:] == small[1:]:
        return CAPITAL + space + small
    if word.isupper():
        return CAPITALS + space + small
    marked = _LETTER.sub(lambda letter: CAPITAL + letter[0].lower(), word)
    return CAPITAL + space + marked[1:] if marked.startswith(CAPITAL) else space + marked


def _unfolded(match: re.Match[bytes]) -> bytes:
    capital, capitals, literal = match.groups()
    if literal is not None:
        return _LITERALS.get(literal, literal)
    return (capitals if capital is None else capital).upper()
