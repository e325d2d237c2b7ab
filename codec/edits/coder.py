"""What a tokenizer loses: the edits that turn a document's canonical bytes into its original bytes, and their coding.

An edit replaces `delete` canonical bytes at a position by inserted bytes. The edits follow the document's tokens in the
same range-coded stream, so their decoder has all of the canonical text. One decision of fixed probability says whether
there are any. If so, decisions go through the positions: whether a character that NFKC replaces was here, where its
replacement is; whether a space was something else, and what of the frequent things; anywhere else, whether there is any
other edit, whose lengths and bytes are coded bit by bit. `codec.edits.model` says how likely each is.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from codec.edits import model as edit_model
from codec.edits.contexts import look, new_lines, pass_space, words_of
from codec.edits.model import BREAKS, BYTES, DELETE, INSERT, LENGTH_BITS, PHRASES, EditModel, decide
from codec.entropy import range_coder
from codec.entropy.adaptive_bit import code_bit
from codec.entropy.range_coder import State
from codec.errors import FormatError

Edits = NDArray[np.int64]
"""int64 [K, 4]: canonical position, bytes deleted, where the inserted bytes begin in the original, how many."""

_REACH = 64  # how far the aligner looks for agreement after a difference
_AGREE = 6  # bytes that must agree there
_EDITED = {True: 1 << 15, False: 1 << 8}  # P(edits), of 2^16, where the tokenizer loses something, or nothing
_OTHER = len(PHRASES) + len(BREAKS)  # an edit that is not in the book


class Book(NamedTuple):
    """Edits with a name: phrases, then breaks."""

    before: NDArray[np.uint8]  # [n, most]: canonical bytes
    before_size: NDArray[np.int64]
    after: NDArray[np.uint8]  # [n, most]: original bytes
    after_size: NDArray[np.int64]
    begins: NDArray[np.int64]  # [256]: the first phrase that begins with this byte, -1 for none
    following: NDArray[np.int64]  # [phrases]: the next that begins with the same byte


@lru_cache
def book() -> Book:
    """PHRASES and BREAKS as arrays."""
    pairs = [*PHRASES, *((b" ", after) for after in BREAKS)]
    most = max(len(part) for pair in pairs for part in pair)
    before, after = (np.array([list(pair[side].ljust(most, b"\0")) for pair in pairs], np.uint8) for side in range(2))
    sizes = np.array([[len(part) for part in pair] for pair in pairs]).T.copy()
    begins, following = np.full(256, -1), np.full(len(PHRASES), -1)
    for n in range(len(PHRASES) - 1, -1, -1):
        byte = before[n, 0]
        begins[byte], following[n] = n, begins[byte]
    return Book(before, sizes[0], after, sizes[1], begins, following)


@njit(cache=True)
def _begins(text, i, parts, n, size):
    """Whether text goes on with the first bytes of parts[n] at i; a slice of it would be counted in and out."""
    if i + size > len(text):
        return False
    for m in range(size):  # noqa: SIM110
        if text[i + m] != parts[n, m]:
            return False
    return True


@njit(cache=True)
def _named(canonical, original, i, j, book):
    """The first entry of the book that leads on from here; a break does where a byte or a phrase agrees behind it."""
    for n in range(len(book.before)):
        d, m = book.before_size[n], book.after_size[n]
        if not (_begins(canonical, i, book.before, n, d) and _begins(original, j, book.after, n, m)):
            continue
        if n < len(PHRASES) or (i + d == len(canonical) and j + m == len(original)):
            return n
        if i + d < len(canonical) and j + m < len(original):
            if canonical[i + d] == original[j + m]:
                return n
            for p in range(len(PHRASES)):
                if _begins(canonical, i + d, book.before, p, book.before_size[p]) and _begins(
                    original, j + m, book.after, p, book.after_size[p]
                ):
                    return n
    return _OTHER


@njit(cache=True)
def _agree(a, b, i, j, count):
    for n in range(count):
        if i + n >= a.shape[0] or j + n >= b.shape[0]:
            return i + n >= a.shape[0] and j + n >= b.shape[0]
        if a[i + n] != b[j + n]:
            return False
    return True


@njit(cache=True)
def _nearest(canonical, original, i, j):
    """How many bytes to delete and to insert until both agree again, else all of them."""
    for distance in range(1, 2 * _REACH + 1):
        for d in range(max(0, distance - _REACH), min(distance, _REACH) + 1):
            if _agree(canonical, original, i + d, j + distance - d, _AGREE):
                return min(d, len(canonical) - i), min(distance - d, len(original) - j)
    return len(canonical) - i, len(original) - j


@njit(cache=True, nogil=True)
def _align(canonical, original, book):
    edits = [(0, 0, 0, 0) for _ in range(0)]
    i, j = 0, 0
    while i < len(canonical) or j < len(original):
        same = i < len(canonical) and j < len(original) and canonical[i] == original[j]
        phrase = _OTHER
        if i < len(canonical) and (not same or book.begins[canonical[i]] >= 0 or canonical[i] == 32):
            phrase = _named(canonical, original, i, j, book)
        if same and phrase >= len(PHRASES) and (phrase == _OTHER or _agree(canonical, original, i + 1, j + 1, 1)):
            i += 1
            j += 1
            continue
        if phrase < _OTHER:
            delete, insert = book.before_size[phrase], book.after_size[phrase]
        else:
            delete, insert = _nearest(canonical, original, i, j)
        edits.append((i, delete, j, insert))
        if delete == 0 and i < len(canonical):  # the byte after an insertion is a copied one
            delete, insert = 1, insert + 1
        i += delete
        j += insert
    out = np.empty((len(edits), 4), np.int64)
    for n in range(len(edits)):
        out[n, 0], out[n, 1], out[n, 2], out[n, 3] = edits[n]
    return out


def align(canonical: NDArray[np.uint8], original: NDArray[np.uint8]) -> Edits:
    """Edits that turn `canonical` into `original`, greedily: after a difference, the nearest agreement of 6 bytes."""
    return _align(canonical, original, book())


@njit(cache=True)
def _number(state, stream, model, base, number, decode):
    """Elias gamma code of number >= 0 under adaptive bits: its length in unary, then the bits below the highest."""
    length = 0
    while length < LENGTH_BITS - 1:
        if not decide(state, stream, model, base + length, (number + 1) >> (length + 1) > 0, decode):
            break
        length += 1
    value = 1
    for n in range(length - 1, -1, -1):
        value = 2 * value + decide(state, stream, model, base + LENGTH_BITS + n, ((number + 1) >> n) & 1, decode)
    return value - 1


@njit(cache=True)
def _entry(canonical, original, edit, book):
    """The book's entry for an edit."""
    for n in range(len(book.before)):
        d, m = book.before_size[n], book.after_size[n]
        same = d == edit[1] and m == edit[3] and _begins(canonical, edit[0], book.before, n, d)
        if same and _begins(original, edit[2], book.after, n, m):
            return n
    return _OTHER


@njit(cache=True)
def _decide_other(state, stream, model, byte, at_end, others, entry, decode):
    """Code whether an edit that the book does not have is at a byte that is no space, or behind the last."""
    slot = edit_model.other_slot(others, byte, at_end)
    return _OTHER if decide(state, stream, model, slot, entry >= 0, decode) else -1


@njit(cache=True)
def _decide_entry(
    state, stream, model, scratch, canonical, i, words, k, seen, before, others, entry, book, decode
):  # a tuple of arrays would be counted in and out at each call
    """Code which entry of the book is here, at a byte that may begin one; -1 for no edit."""
    byte = canonical[i]
    n = book.begins[byte]
    while n >= 0:
        if _begins(canonical, i, book.before, n, book.before_size[n]):
            slot = edit_model.phrase_slot(model, n, canonical[i - 1] if i else 32)
            taken = decide(state, stream, model, slot, entry == n, decode)
            edit_model.note_phrase(model, n, taken)
            if taken:
                return n
        n = book.following[n]
    if byte != 32:
        return _decide_other(state, stream, model, byte, i == 0, others, entry, decode)
    look(words, k, len(canonical), seen, scratch[0], scratch[1])
    if not edit_model.decide_space(state, stream, model, scratch, entry >= 0, decode):
        return -1
    for n in range(len(BREAKS)):
        if decide(state, stream, model, edit_model.kind_slot(n, before), entry == len(PHRASES) + n, decode):
            return len(PHRASES) + n
    return _OTHER


@njit(cache=True, nogil=True)
def _code(state, stream, model, canonical, original, edits, book, decode):
    """Encode the edits into `stream`, or decode the original from it: its bytes, and whether the stream lasted."""
    size, words, seen, scratch = len(canonical), words_of(canonical), new_lines(), edit_model.new_scratch()
    out = np.empty(2 * size + 64 if decode else 0, np.uint8)
    i = n = k = length = others = 0  # position, edit, spaces passed, bytes of `out`, edits that are not in the book
    before = -1  # what the last edit at a space was
    while i <= size:
        entry, delete, begin, insert = -1, 0, 0, 0
        if not decode and n < len(edits) and edits[n, 0] == i:
            delete, begin, insert = edits[n, 1], edits[n, 2], edits[n, 3]
            entry = _entry(canonical, original, edits[n], book)
            n += 1
        byte = canonical[i] if i < size else np.uint8(0)
        if i < size and (byte == 32 or book.begins[byte] >= 0):
            entry = _decide_entry(
                state, stream, model, scratch, canonical, i, words, k, seen, before, others, entry, book, decode
            )
        else:
            entry = _decide_other(state, stream, model, byte, i == 0 or i == size, others, entry, decode)
        broken = False
        if entry == _OTHER:
            others += 1
            delete = _number(state, stream, model, DELETE, delete, decode)
            insert = _number(state, stream, model, INSERT, insert, decode)
        elif entry >= 0:
            delete, insert = book.before_size[entry], book.after_size[entry]
        for m in range(insert):
            if entry == _OTHER:
                tree, node = BYTES + (256 if m else 0), 1
                for shift in range(7, -1, -1):
                    bit = 0 if decode else (original[begin + m] >> shift) & 1
                    node = 2 * node + decide(state, stream, model, tree + node, bit, decode)
                byte = np.uint8(node - 256)
            else:
                byte = book.after[entry, m]
            broken = broken or byte == 10
            if decode:
                out = _room(out, length)
                out[length] = byte
                length += 1
                if state[2] > np.uint64(len(stream) + range_coder.CODE_BYTES):
                    return out[:length], False
        if entry >= 0 and i < size and canonical[i] == 32:
            before = min(max(entry - len(PHRASES), 0), len(BREAKS)) if entry >= len(PHRASES) else before
        end = min(i + max(delete, 1), size)
        for at in range(i, end):
            if canonical[at] == 32:
                pass_space(words, k, seen, broken)
                k += 1
        if decode and delete == 0 and i < size:
            out = _room(out, length)
            out[length] = canonical[i]
            length += 1
        i += max(delete, 1)
    return out[:length], True


@njit(cache=True)
def _room(array, length):
    """`array`, or a copy twice as long when it is full."""
    if length < array.shape[0]:
        return array
    longer = np.empty(2 * array.shape[0], np.uint8)
    longer[:length] = array
    return longer


@njit(cache=True, nogil=True)
def _chances(canonical, book):
    """How often a phrase could be somewhere."""
    count = 0
    for i in range(len(canonical)):
        n = book.begins[canonical[i]]
        while n >= 0:
            count += _begins(canonical, i, book.before, n, book.before_size[n])
            n = book.following[n]
    return count


def edits_capacity(canonical: NDArray[np.uint8], edits: Edits) -> int:
    """Bytes of output buffer that `put_edits` may need: every decision takes at most two."""
    if not len(edits):
        return 16
    each = len(BREAKS) + 1 + 4 * LENGTH_BITS
    decisions = 1 + len(canonical) + 1 + _chances(canonical, book()) + each * len(edits) + 8 * int(edits[:, 3].sum())
    return 2 * decisions + 16


def put_edits(
    state: State,
    out: NDArray[np.uint8],
    canonical: NDArray[np.uint8],
    original: NDArray[np.uint8],
    edits: Edits,
    lossy: bool,
    model: EditModel | None = None,
) -> None:
    """Encode the edits of a document; `out` needs `edits_capacity` bytes beyond those written.

    Args:
        lossy: whether the tokenizer loses something of most texts.
        model: what adapts, `edit_model.new_model()` where it is not given.
    """
    code_bit(state, out, _EDITED[lossy], int(len(edits) > 0), False)
    if len(edits):
        _code(state, out, model or edit_model.new_model(), canonical, original, edits, book(), False)


def take_edits(state: State, data: NDArray[np.uint8], canonical: bytes, lossy: bool) -> bytes:
    """The original bytes of a document, from the state of a decoder that has read its tokens.

    Raises:
        FormatError: the stream ends before the edits, or goes on after them.
    """
    stream, text = data.copy(), np.frombuffer(canonical, np.uint8)  # writable: one compiled function codes both ways
    whole, original = True, text
    if code_bit(state, stream, _EDITED[lossy], 0, True):
        none = np.zeros((0, 4), np.int64)
        original, whole = _code(state, stream, edit_model.new_model(), text, text, none, book(), True)
    if not whole:
        raise FormatError(f"record of {len(data)} bytes ends inside the edits of its document; the archive is damaged")
    if not range_coder.ended(state, len(data)):
        raise FormatError(f"record of {len(data)} bytes does not end with its document; the archive is damaged")
    return original.tobytes()
