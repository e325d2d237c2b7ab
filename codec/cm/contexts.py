"""Hash the contexts of a byte: the text before the byte or, in records, the bytes above and before."""

import numpy as np

from codec.cm.slots import mixed
from codec.cm.state import (
    EXPECTED,
    INDENT,
    KIND,
    LAST,
    LENGTH,
    LINE,
    LINE1,
    MARK,
    PLACE,
    RECORD,
    SHAPE,
    USED,
    WORD,
    WORD1,
    WORD2,
)
from codec.compiled import compiled

_RUNS = 4
_SHAPES = np.array(
    [
        1 if chr(n).isalpha() and n < 128 else 2 if 48 <= n <= 57 else 3 if n >= 128 else 4 if n == 32 else 5 + n % 8
        for n in range(256)
    ],
    np.int64,
)
"""Classes of bytes: letters, digits, parts of other characters, spaces; several classes of marks and of controls. Of
equal classes in a row, those up to `_RUNS` count once."""


@compiled
def _take_text(s, byte):
    """Take a byte into the registers that text contexts are made of."""
    r = s.registers
    folded = byte + 32 if 65 <= byte <= 90 else byte
    if 97 <= folded <= 122 or folded >= 128 or 48 <= folded <= 57 or folded == 39:
        r[WORD] = mixed(r[WORD], folded)
    elif r[WORD] != 0:
        r[WORD2], r[WORD1], r[WORD] = r[WORD1], r[WORD], 0
        r[MARK] = byte
    elif byte > 32:
        r[MARK] = byte
    shape = _SHAPES[byte]
    if shape != r[SHAPE] & 15 or shape > _RUNS:
        r[SHAPE] = (r[SHAPE] << 4 | shape) & 0xFFFFFFFF
    if byte == 10:
        r[LINE1], r[LINE], r[INDENT] = r[LINE], r[PLACE], 0
    elif r[PLACE] - r[LINE] == r[INDENT] + 1 and (byte == 32 or byte == 9):
        r[INDENT] += 1


@compiled
def _hash_text(s):
    """Hash orders 0 to 6, words, pairs of words, the byte above, indentation and shapes; return how many contexts."""
    r, h, history = s.registers, s.hashes, s.history
    last, above = r[LAST], r[LINE1] + r[PLACE] - r[LINE]
    up = np.int64(history[above & (len(history) - 1)]) if above < r[LINE] else 0
    for i in range(7):
        h[i] = last & ((1 << (8 * i)) - 1)
    h[7] = mixed(r[WORD], last & 0xFF)
    h[8] = mixed(r[WORD], r[WORD1])
    h[9] = mixed(r[EXPECTED], min(r[LENGTH], 32) >> 1)
    h[10] = mixed(r[WORD], r[WORD2])
    h[11] = mixed(up, mixed(last & 0xFF, 0))
    h[12] = mixed(r[WORD], mixed(r[MARK], r[INDENT]))
    h[13] = mixed(r[SHAPE], 77)
    h[14] = mixed(min(r[PLACE] - r[LINE], 255), up)
    return 15


@compiled
def _take_record(s, byte):
    """Note a byte as the last one that followed the byte and the two bytes before."""
    before = s.registers[LAST] >> 8
    for at in (before & 0xFF, 256 + (before & 0xFFFF)):
        s.following[at] = np.uint32((np.int64(s.following[at]) << 8 | byte) & 0xFFFFFF)


@compiled
def _hash_record(s):
    """Hash orders 0 to 4 and 6, bytes above, columns, differences, sparse and indirect contexts; return how many."""
    r, h, history, mask = s.registers, s.hashes, s.history, len(s.history) - 1
    last, place, length = r[LAST], r[PLACE], r[RECORD]
    up, up2 = np.int64(history[(place - length) & mask]), np.int64(history[(place - 2 * length) & mask])
    before, behind = np.int64(history[(place - length - 1) & mask]), np.int64(history[(place - length + 1) & mask])
    behind2 = np.int64(history[(place - length + 2) & mask])
    around = up | before << 8 | behind << 16
    column, c1 = place % length, last & 0xFF
    for i in range(5):
        h[i] = last & ((1 << (8 * i)) - 1)
    h[5] = last & 0xFFFFFFFFFFFF
    h[6] = up | c1 << 8
    h[7] = up | up2 << 8 | c1 << 16
    h[8] = around
    h[9] = mixed(up | c1 << 8, column)
    h[10] = mixed(r[EXPECTED], min(r[LENGTH], 32) >> 1)
    h[11] = mixed((2 * up - up2) & 0xFF, column)
    h[12] = last & 0xFFFF00
    h[13] = around | c1 << 24 | up2 << 32
    h[14] = (c1 - before) & 0xFF | up << 8
    h[15] = mixed(np.int64(s.following[c1]) & 0xFFFF, c1)
    h[16] = mixed(np.int64(s.following[256 + (last & 0xFFFF)]) & 0xFFFF, last & 0xFFFF)
    h[17] = last & 0xFFFF0000
    h[18] = mixed(around | behind2 << 24, last & 0xFFFF | up2 << 16)
    h[19] = mixed(column, c1)
    h[20] = last & 0xFF00FF
    return 21


@compiled
def take_byte(s, byte):
    """Take a byte that register LAST already has into the other registers."""
    if s.registers[KIND]:
        _take_record(s, byte)
    else:
        _take_text(s, byte)


@compiled
def hash_contexts(s):
    """Fill in the hashes of the next byte's contexts."""
    used = _hash_record(s) if s.registers[KIND] else _hash_text(s)
    for i in range(used):
        s.hashes[i] = mixed(s.hashes[i], i + 1)
    s.registers[USED] = used
