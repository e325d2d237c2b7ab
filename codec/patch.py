"""What a tokenizer loses: the edits that turn a document's canonical bytes into its original bytes, and their coding.

An edit replaces `delete` canonical bytes at a position by inserted bytes. The edits follow the document's tokens in the
same range-coded stream: one bit of fixed probability says whether there are any; if so, a flag before every canonical
byte says whether an edit is there, under adaptive counts whose context is what surrounds the position (a normaliser
edits spaces, and those after a full stop most), and the lengths and bytes of an edit are coded bit by bit.
"""

import numpy as np
from numba import njit
from numpy.typing import NDArray

from codec import rangecoder
from codec.errors import FormatError
from codec.rangecoder import State

Edits = NDArray[np.int64]
"""int64 [K, 4]: canonical position, bytes deleted, where the inserted bytes begin in the original, how many."""

_REACH = 64  # how far the aligner looks for agreement after a difference
_AGREE = 6  # bytes that must agree there
_NO_EDITS_BITS = 8  # P(edits) = 2^-8 for the first flag: 0.006 bit for a document without edits

_CLASSES = 8
_FLAGS = 2 * _CLASSES  # contexts of the edit flag
_LENGTH_BITS = 32
_CONTEXTS = _FLAGS + 2 * 2 * _LENGTH_BITS + 2 * 256  # flags, gamma codes of the two lengths, bytes by the one before
_DELETE, _INSERT, _BYTES = _FLAGS, _FLAGS + 2 * _LENGTH_BITS, _FLAGS + 4 * _LENGTH_BITS


@njit(cache=True)
def _agree(a, b, i, j):
    for n in range(_AGREE):
        if i + n >= a.shape[0] or j + n >= b.shape[0]:
            return i + n >= a.shape[0] and j + n >= b.shape[0]
        if a[i + n] != b[j + n]:
            return False
    return True


@njit(cache=True)
def align(canonical: NDArray[np.uint8], original: NDArray[np.uint8]) -> Edits:
    """Edits that turn `canonical` into `original`, greedily: after a difference, the nearest agreement of 6 bytes."""
    edits = [(0, 0, 0, 0) for _ in range(0)]
    i, j = 0, 0
    while i < canonical.shape[0] or j < original.shape[0]:
        if i < canonical.shape[0] and j < original.shape[0] and canonical[i] == original[j]:
            i += 1
            j += 1
            continue
        delete, insert = canonical.shape[0] - i, original.shape[0] - j
        found = False
        for distance in range(1, 2 * _REACH + 1):
            for d in range(max(0, distance - _REACH), min(distance, _REACH) + 1):
                if _agree(canonical, original, i + d, j + distance - d):
                    delete, insert, found = d, distance - d, True
                    break
            if found:
                break
        delete, insert = min(delete, canonical.shape[0] - i), min(insert, original.shape[0] - j)
        edits.append((i, delete, j, insert))
        i += delete
        j += insert
    out = np.empty((len(edits), 4), np.int64)
    for n in range(len(edits)):
        out[n, 0], out[n, 1], out[n, 2], out[n, 3] = edits[n]
    return out


@njit(cache=True)
def _new_counts() -> NDArray[np.int64]:
    """Counts of zeros and ones in every context: int64 [contexts, 2]."""
    counts = np.ones((_CONTEXTS, 2), np.int64)
    counts[:_CLASSES, 0] = 4000  # an edit elsewhere than at a space is rare
    counts[_CLASSES:_FLAGS, 0] = 20
    return counts


@njit(cache=True)
def _class(byte):
    if 97 <= byte <= 122:
        return 0
    if 65 <= byte <= 90:
        return 1
    if 48 <= byte <= 57:
        return 2
    if byte == 46 or byte == 33 or byte == 63:
        return 3
    if byte == 44 or byte == 59 or byte == 58:
        return 4
    if byte == 32 or byte == 10:
        return 5
    if byte >= 128:
        return 6
    return 7


@njit(cache=True)
def _flag_context(canonical, i):
    before = _class(canonical[i - 1]) if i > 0 else 5
    at_space = i == canonical.shape[0] or canonical[i] == 32
    return before + (_CLASSES if at_space else 0)


@njit(cache=True)
def _put_bit(state, out, counts, bit):
    zeros, total = counts[0], counts[0] + counts[1]
    unit = state[1] // np.uint64(total)
    if bit:
        rangecoder.put(state, out, zeros, counts[1], unit)
    else:
        rangecoder.put(state, out, 0, zeros, unit)
    _learn(counts, bit)


@njit(cache=True)
def _take_bit(state, data, counts):
    zeros, total = counts[0], counts[0] + counts[1]
    unit = state[1] // np.uint64(total)
    bit = 1 if rangecoder.target(state, unit, total) >= zeros else 0
    if bit:
        rangecoder.take(state, data, zeros, counts[1], unit)
    else:
        rangecoder.take(state, data, 0, zeros, unit)
    _learn(counts, bit)
    return bit


@njit(cache=True)
def _learn(counts, bit):
    counts[bit] += 2
    if counts[0] + counts[1] > 8000:
        counts[0] = (counts[0] + 1) >> 1
        counts[1] = (counts[1] + 1) >> 1


@njit(cache=True)
def _put_number(state, out, counts, base, number):
    """Elias gamma code of number >= 0 under adaptive bits: its length in unary, then the bits below the highest."""
    value = number + 1
    length = 0
    while value >> (length + 1):
        length += 1
    for n in range(length):
        _put_bit(state, out, counts[base + n], 1)
    _put_bit(state, out, counts[base + length], 0)
    for n in range(length - 1, -1, -1):
        _put_bit(state, out, counts[base + _LENGTH_BITS + n], (value >> n) & 1)


@njit(cache=True)
def _take_number(state, data, counts, base):
    length = 0
    while length < _LENGTH_BITS - 1 and _take_bit(state, data, counts[base + length]):
        length += 1
    value = 1
    for n in range(length - 1, -1, -1):
        value = value * 2 + _take_bit(state, data, counts[base + _LENGTH_BITS + n])
    return value - 1


@njit(cache=True)
def put_edits(
    state: State, out: NDArray[np.uint8], canonical: NDArray[np.uint8], original: NDArray[np.uint8], edits: Edits
) -> None:
    """Encode the edits of a document; `out` needs `edits_capacity` bytes beyond those written."""
    unit = state[1] >> np.uint64(_NO_EDITS_BITS)
    none = (1 << _NO_EDITS_BITS) - 1
    if edits.shape[0] == 0:
        rangecoder.put(state, out, 0, none, unit)
        return
    rangecoder.put(state, out, none, 1, unit)
    counts = _new_counts()
    i, n = 0, 0
    while i <= canonical.shape[0]:  # the last position is the end
        here = n < edits.shape[0] and edits[n, 0] == i
        _put_bit(state, out, counts[_flag_context(canonical, i)], 1 if here else 0)
        if not here:
            i += 1
            continue
        delete, begin, insert = edits[n, 1], edits[n, 2], edits[n, 3]
        _put_number(state, out, counts, _DELETE, delete)
        _put_number(state, out, counts, _INSERT, insert)
        for k in range(insert):
            tree = _BYTES + (256 if k else 0)
            node = 1
            for shift in range(7, -1, -1):
                bit = (original[begin + k] >> shift) & 1
                _put_bit(state, out, counts[tree + node], bit)
                node = 2 * node + bit
        i += delete + 1  # the byte after an edit is a copied one
        n += 1


@njit(cache=True)
def _take_edits(state, data, canonical):
    """The original bytes, and whether the stream lasted."""
    size = canonical.shape[0]
    unit = state[1] >> np.uint64(_NO_EDITS_BITS)
    none = (1 << _NO_EDITS_BITS) - 1
    if rangecoder.target(state, unit, none + 1) < none:
        rangecoder.take(state, data, 0, none, unit)
        return canonical, True
    rangecoder.take(state, data, none, 1, unit)
    counts = _new_counts()
    original = np.empty(2 * size + 64, np.uint8)
    i, length = 0, 0
    while i <= size:
        if not _take_bit(state, data, counts[_flag_context(canonical, i)]):
            if i < size:
                original = _room(original, length)
                original[length] = canonical[i]
                length += 1
            i += 1
            continue
        delete = _take_number(state, data, counts, _DELETE)
        insert = _take_number(state, data, counts, _INSERT)
        for k in range(insert):
            tree = _BYTES + (256 if k else 0)
            node = 1
            for _ in range(8):
                node = 2 * node + _take_bit(state, data, counts[tree + node])
            original = _room(original, length)
            original[length] = node - 256
            length += 1
            if state[2] > np.uint64(data.shape[0] + rangecoder.CODE_BYTES):
                return original[:length], False
        i += delete
        if i < size:
            original = _room(original, length)
            original[length] = canonical[i]
            length += 1
        i += 1
    return original[:length], True


@njit(cache=True)
def _room(array, length):
    """`array`, or a copy twice as long when it is full."""
    if length < array.shape[0]:
        return array
    longer = np.empty(2 * array.shape[0], np.uint8)
    longer[:length] = array
    return longer


def edits_capacity(canonical: int, edits: Edits) -> int:
    """Bytes of output buffer that `put_edits` may need: every coded bit takes at most two."""
    bits = 1 + canonical + 1 + 4 * _LENGTH_BITS * len(edits) + 8 * int(edits[:, 3].sum())
    return 2 * bits + 16


def take_edits(state: State, data: NDArray[np.uint8], canonical: bytes) -> bytes:
    """The original bytes of a document, from the state of a decoder that has read its tokens.

    Raises:
        FormatError: the stream ends before the edits, or goes on after them.
    """
    original, whole = _take_edits(state, data, np.frombuffer(canonical, np.uint8))
    if not whole:
        raise FormatError(f"record of {len(data)} bytes ends inside the edits of its document; the archive is damaged")
    if not rangecoder.ended(state, len(data)):
        raise FormatError(f"record of {len(data)} bytes does not end with its document; the archive is damaged")
    return original.tobytes()
