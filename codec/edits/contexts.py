"""Contexts of a space in a document's canonical text, for the guess whether the original has a line break there.

The decoder knows all of the canonical text before its first edit, so contexts look both ways: at the words on both
sides, the sentences ahead, the line so far, and the breaks of the lines before. Words are the parts between spaces.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from codec.compiled import compiled, making

Array = NDArray[np.int64]

_LOWER, _UPPER, _DIGIT, _STOP, _MARK, _COMMA, _COLON, _QUOTE, _CLOSE, _OPEN = range(10)
_DASH, _BULLET, _FOREIGN, _NOTHING, _RULE, _OTHER = range(10, 16)
CLASSES = 16

_HASH = 1024  # slots of a context that is the hash of a word
_AHEAD = 40  # words searched for the next place of a possible break

_ASCII = np.full(128, _OTHER, np.int64)
for _kind, _characters in (
    (_LOWER, "abcdefghijklmnopqrstuvwxyz"),
    (_UPPER, "ABCDEFGHIJKLMNOPQRSTUVWXYZ"),
    (_DIGIT, "0123456789"),
    (_STOP, "."),
    (_MARK, "!?"),
    (_COMMA, ","),
    (_COLON, ":;"),
    (_QUOTE, "\"'"),
    (_CLOSE, ")]}"),
    (_OPEN, "([{"),
    (_DASH, "-"),
    (_BULLET, "*#"),
    (_NOTHING, " "),
    (_RULE, "|/_=<>"),
):
    for _character in _characters:
        _ASCII[ord(_character)] = _kind


class Words(NamedTuple):
    """The words of a text, each array int64 [n]."""

    begins: Array  # first byte
    ends: Array  # byte after the last
    first: Array  # class of the first character
    second: Array  # class of the second character
    last: Array  # class of the last character
    kind: Array  # 1 begins with a capital, 2 with a digit or a sign, 0 others
    closes: Array  # 1 where a sentence seems to end, else 0
    hashes: Array
    stop: Array  # byte at which the word's sentence ends


# Indices of the array that describes a document's lines so far.
_BEGIN, _WORD, _BREAKS, _CLOSED, _CLOSED_BREAKS, _PASSED, _PASSED_BEFORE, _LENGTH, _WORDS = range(9)
_LONGEST, _FIRST, _LAST, _CAPITALS, _STARTS = range(9, 14)
_LINES = 4  # lines whose first words are remembered
SEEN = _STARTS + _LINES


@compiled
def _class(text, i):
    """Return the class of the character that contains byte i."""
    if text[i] < 128:
        return _ASCII[text[i]]
    while i > 0 and 128 <= text[i] < 192:
        i -= 1
    if i + 2 < len(text) and text[i] == 226 and text[i + 1] == 128:  # U+2000 to U+203F
        sign = text[i + 2]
        if 152 <= sign < 160:
            return _QUOTE
        if 144 <= sign < 150:
            return _DASH
        if sign == 162:
            return _BULLET
    return _FOREIGN


@compiled
def _hash(text, begin, end):
    """Return the FNV-1a hash of a word's first 12 bytes; all digits count as the same."""
    value = np.uint32(2166136261)
    for i in range(begin, min(end, begin + 12)):
        byte = np.uint32(48) if 48 <= text[i] <= 57 else np.uint32(text[i])
        value = (value ^ byte) * np.uint32(16777619)
    return np.int64(value ^ (value >> np.uint32(15)))


@making
def words_of(text: NDArray[np.uint8]) -> Words:
    """Return the words of a text: the number of its spaces and one more."""
    words = 1
    for byte in text:
        words += byte == 32
    w = np.empty((9, words), np.int64)
    begins, ends, first, second, last, kind, closes, hashes, stop = w
    word, begin = 0, 0
    for i in range(len(text) + 1):
        if i < len(text) and text[i] != 32:
            continue
        begins[word], ends[word] = begin, i
        word, begin = word + 1, i + 1
    following = len(text)
    for n in range(words - 1, -1, -1):
        b, e = begins[n], ends[n]
        first[n] = second[n] = last[n] = _NOTHING
        kind[n], closes[n], hashes[n] = 0, 0, _hash(text, b, e)
        if b < e:
            first[n], last[n] = _class(text, b), _class(text, e - 1)
            second[n] = _class(text, b + 1) if b + 1 < e else _NOTHING
            ending, opening, i = last[n], first[n], e - 1
            if ending in (_QUOTE, _CLOSE):
                while i > b and 128 <= text[i] < 192:
                    i -= 1
                ending = _class(text, i - 1) if i > b else ending
            if opening in (_QUOTE, _OPEN) and second[n] <= _DIGIT:
                opening = second[n]
            closes[n] = ending in (_STOP, _MARK)
            kind[n] = 1 if opening == _UPPER else 2 if opening == _DIGIT or opening >= _OPEN else 0
        if closes[n]:
            following = e
        stop[n] = following
    return Words(begins, ends, first, second, last, kind, closes, hashes, stop)


@making
def new_lines() -> Array:
    """Return the description of lines at a document's beginning: int64 [SEEN]."""
    seen = np.zeros(SEEN, np.int64)
    seen[_FIRST] = seen[_LAST] = _NOTHING
    seen[_STARTS:] = -1
    return seen


@compiled
def _size(value, most):
    """Return the half octaves of a number >= 0, at most `most`."""
    value, length = value + 1, 0
    while value >> (length + 1):
        length += 1
    return min(2 * length + ((value >> (length - 1)) & 1 if length else 0), most)


@compiled
def _difference(value):
    """Return the half octaves of a number of either sign: 0 to 43."""
    return _size(abs(value), 21) + (22 if value < 0 else 0)


SIZES = np.array(
    [
        *(256, 256, _HASH, _HASH, 88, 256, 392, 224, 88, 243, 162, 256),
        *(80, 88, 256, _HASH, _HASH, 56, 160, 88, 44, 968, 100, 256),
        *(256, _HASH, 384, 16, 144, 256, 1458, 128, 1056, 192, _HASH),
    ]
)
"""Slots of each context."""

SELECTORS = np.array([36, 16, 12, 14, 9, 54, 32, 16])
"""Sets of weights from which each selector chooses."""

FINAL_SETS = 36


@compiled
def look(w, k, size, seen, contexts, selected):
    """Write the contexts of the space behind word k, and the set of weights each selector chooses.

    Args:
        w: `words_of` the text.
        k: the word before the space.
        size: bytes of the text.
        seen: the lines so far, of `new_lines` and `pass_space`.
        contexts: output, int64 [len(SIZES)].
        selected: output, int64 [len(SELECTORS)].
    """
    n, left, right = len(w.begins), w.last[k], w.first[k + 1]
    closed, capital = w.closes[k], 1 if w.kind[k + 1] == 1 else 0
    length, words = w.ends[k] - seen[_BEGIN], k + 1 - seen[_WORD]
    third = w.hashes[k + 2] if k + 2 < n else 0
    others = seen[_BREAKS] - seen[_CLOSED_BREAKS]
    rate = _size(16 * seen[_CLOSED_BREAKS] // (seen[_CLOSED] + 1), 15)  # share of sentences that end a line
    ahead = w.stop[k + 1] - w.begins[k + 1]
    next_length = w.ends[k + 1] - w.begins[k + 1]

    kinds = five = 0  # kinds of the words behind and ahead, as digits of base 3
    capitals = 0
    for j in range(1, 9):
        kind = w.kind[k + j] if k + j < n else 2
        kinds, five = (3 * kinds + kind if j < 4 else kinds), (3 * five + kind if j < 6 else five)
        capitals += k + j < n and kind != 0
    behind = 0
    for j in range(4):
        kind = w.kind[k - j] if k >= j else 2
        kinds, behind = (3 * kinds + kind if j < 3 else kinds), 3 * behind + kind
    closing = 0  # a bit for each of the next words: whether a sentence ends with the word
    for j in range(1, 5):
        closing = 2 * closing + (w.closes[k + j] if k + j < n else int(j > 1))
    again = 0
    for j in range(_LINES):
        if seen[_STARTS + j] == w.hashes[k + 1] & 0xFFFF:
            again = j + 1
            break
    candidate = 0  # words to the next place for a break
    for j in range(k + 1, min(n - 1, k + _AHEAD)):
        candidate += 1
        if w.closes[j] or (w.kind[j + 1] == 1 and w.kind[j] == 0):
            break

    c = contexts
    c[0] = left * CLASSES + right
    c[1] = right * CLASSES + w.second[k + 1]
    c[2] = w.hashes[k] % _HASH
    c[3] = (w.hashes[k + 1] * 2 + closed) % _HASH
    c[4] = (_size(length, 21) * 2 + closed) * 2 + capital
    c[5] = _size(words, 15) * CLASSES + left
    c[6] = (_size(seen[_CLOSED], 13) * 14 + _size(seen[_CLOSED_BREAKS], 13)) * 2 + closed
    c[7] = _size(w.ends[k], 27) * 8 + min(_size(seen[_BREAKS], 99) >> 1, 7)
    c[8] = (_size(ahead, 21) * 2 + closed) * 2 + capital
    c[9] = five
    c[10] = behind * 2 + closed
    c[11] = left * CLASSES + seen[_LAST]
    c[12] = again * CLASSES + left
    c[13] = _difference(length - seen[_LENGTH]) * 2 + closed
    c[14] = min(seen[_PASSED], 15) * 16 + rate
    c[15] = (third * 2 + closed) % _HASH
    c[16] = w.hashes[k - 1] % _HASH if k else 0
    c[17] = _size(size - w.ends[k], 27) * 2 + closed
    c[18] = _size(next_length, 9) * CLASSES + right
    c[19] = _difference(length + 1 + next_length - seen[_LONGEST]) * 2 + closed
    c[20] = _difference(length - seen[_LONGEST])
    c[21] = (_size(w.ends[k] // (seen[_BREAKS] + 1), 21) * 22 + _size(length, 21)) * 2 + closed
    c[22] = _size(others, 9) * 10 + _size(seen[_BREAKS], 9)
    c[23] = right * CLASSES + seen[_FIRST]
    c[24] = min(seen[_CAPITALS], 15) * 16 + min(words, 15)
    c[25] = (w.hashes[k] * 31 + w.hashes[k + 1]) % _HASH
    c[26] = (_size(seen[_WORDS], 11) * 16 + _size(words, 15)) * 2 + closed
    c[27] = closing
    c[28] = capitals * CLASSES + left
    c[29] = w.last[k + 1] * CLASSES + right
    c[30] = kinds * 2 + closed
    c[31] = (min(seen[_PASSED], 7) * 8 + min(seen[_PASSED_BEFORE], 7)) * 2 + closed
    c[32] = ((min(seen[_PASSED], 5) * 11 + _size(ahead, 21) // 2) * 8 + rate // 2) * 2 + closed
    c[33] = ((_size(candidate, 11) * 2 + closed) * 2 + capital) * 4 + min(_size(words, 99) >> 2, 3)
    c[34] = ((w.hashes[k + 1] * 5 + third * 7) * 2 + closed) % _HASH

    s = selected
    s[0] = _side(left) * 6 + _side(right)
    s[1] = min(_size(seen[_BREAKS], 99) >> 1, 7) * 2 + closed
    s[2] = min(_size(words, 15) // 2, 5) * 2 + closed
    s[3] = _size(size - w.ends[k], 27) // 2
    s[4] = capitals
    s[5] = behind % 27 * 2 + closed
    s[6] = (min(_size(words, 99) >> 2, 3) * 8) + min(_size(candidate, 11), 7)
    s[7] = min(seen[_PASSED], 7) * 2 + closed


@compiled
def _side(kind):
    """Return the group of a class, one of six."""
    if kind <= _DIGIT:
        return kind
    if kind in (_STOP, _MARK):
        return 3
    return 5 if kind in (_DASH, _BULLET) else 4


@compiled
def pass_space(w, k, seen, broken):
    """Update `seen` with the space behind word k, which was a line break if `broken`."""
    closed = w.closes[k]
    seen[_CAPITALS] += w.kind[k] == 1
    seen[_CLOSED] += closed
    if not broken:
        seen[_PASSED] += closed
        return
    length = w.ends[k] - seen[_BEGIN]
    seen[_BREAKS] += 1
    seen[_CLOSED_BREAKS] += closed
    for j in range(SEEN - 1, _STARTS, -1):
        seen[j] = seen[j - 1]
    seen[_STARTS] = w.hashes[k + 1] & 0xFFFF
    seen[_FIRST], seen[_LAST] = w.first[seen[_WORD]], w.last[k]
    seen[_LENGTH] = length
    seen[_LONGEST] = max(seen[_LONGEST], length)
    seen[_WORDS], seen[_PASSED_BEFORE] = k + 1 - seen[_WORD], seen[_PASSED] + closed
    seen[_BEGIN], seen[_WORD] = w.begins[k + 1], k + 1
    seen[_PASSED] = seen[_CAPITALS] = 0
