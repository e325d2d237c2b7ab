"""The coder of edits: encode the edits of a document behind its tokens, and decode its original bytes.

An edit replaces `delete` canonical bytes at a position by inserted bytes. The edits follow the document's tokens in the
same range-coded stream, so the decoder of edits knows all of the canonical text. One decision of fixed probability says
whether the document has edits. If so, decisions go through the positions:

- where a phrase that NFKC produces begins: whether the original has the character that NFKC replaces;
- at a space: whether the original has something else, and which of the frequent breaks;
- anywhere else: whether any other edit begins, whose lengths and bytes are coded bit by bit.

`codec.edits.model` holds the probabilities.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from codec.compiled import compiled, compiler, making
from codec.edits import model as edit_model
from codec.edits.align import Edits, align
from codec.edits.book import OTHER, begins, book, chances, entry_of
from codec.edits.contexts import look, new_lines, pass_space, words_of
from codec.edits.model import BREAKS, BYTES, DELETE, INSERT, LENGTH_BITS, PHRASES, EditModel, decide
from codec.entropy import range_coder
from codec.entropy.adaptive_bit import code_adaptive, code_bit
from codec.entropy.range_coder import State
from codec.errors import FormatError

__all__ = ["Edits", "align", "edits_capacity", "put_edits", "take_edits"]

_MOST_BYTES = 1 << 30  # of a document whose size is not known
_EDITED = {True: 1 << 15, False: 1 << 8}  # P(edits) in units of 2^-16, by whether the tokenizer is lossy


@compiled
def _number(state, stream, model, base, number, decode):
    """Code number >= 0 under adaptive bits, by its Elias gamma code.

    The length comes first, in unary, then the bits below the highest.
    """
    length = 0
    while length < LENGTH_BITS - 1:
        if not decide(state, stream, model, base + length, (number + 1) >> (length + 1) > 0, decode):
            break
        length += 1
    value = 1
    for n in range(length - 1, -1, -1):
        value = 2 * value + decide(state, stream, model, base + LENGTH_BITS + n, ((number + 1) >> n) & 1, decode)
    return value - 1


@compiler(inline="always")  # five sixths of all decisions
def _decide_other(state, stream, model, byte, at_end, others, entry, decode):
    """Code whether an edit outside the book is at a byte that is no space, or behind the last byte."""
    slot, edited = edit_model.other_slot(others, byte, at_end), entry >= 0
    coded = code_adaptive(state, stream, model.probabilities, model.counts, slot, edited, model.most, decode)
    return OTHER if coded else -1


@compiled
def _decide_entry(state, stream, model, scratch, canonical, i, words, k, seen, before, others, entry, book, decode):
    """Code which entry of the book is at a byte that may begin an entry; return the entry, -1 for no edit."""
    byte = canonical[i]
    n = book.begins[byte]
    while n >= 0:
        if begins(canonical, i, book.before, n, book.before_size[n]):
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
    return OTHER


@making
def _code(state, stream, model, canonical, original, edits, book, decode, most):
    """Encode the edits into `stream`, or decode the original of at most `most` bytes from `stream`.

    Returns:
        (the original's bytes, empty when encoding; whether the stream and `most` lasted).
    """
    size, words, seen, scratch = len(canonical), words_of(canonical), new_lines(), edit_model.new_scratch()
    out = np.empty(2 * size + 64 if decode else 0, np.uint8)
    # Not 0 and -1: numba takes these as types of their own, and compiles all that is called with them a second time.
    zero: Any = np.int64(0)
    i = n = k = length = others = zero  # position, edit, spaces passed, bytes of `out`, edits outside the book
    before = zero - 1  # kind of the last edit at a space
    while i <= size:
        entry, delete, begin, insert = -1, 0, 0, 0
        if not decode and n < len(edits) and edits[n, 0] == i:
            delete, begin, insert = edits[n, 1], edits[n, 2], edits[n, 3]
            entry = entry_of(canonical, original, edits[n], book)
            n += 1
        byte = canonical[i] if i < size else np.uint8(0)
        if i < size and (byte == 32 or book.begins[byte] >= 0):
            entry = _decide_entry(
                state, stream, model, scratch, canonical, i, words, k, seen, before, others, entry, book, decode
            )
        else:
            entry = _decide_other(state, stream, model, byte, i == 0 or i == size, others, entry, decode)
        broken = False
        if entry == OTHER:
            others += 1
            delete = _number(state, stream, model, DELETE, delete, decode)
            insert = _number(state, stream, model, INSERT, insert, decode)
        elif entry >= 0:
            delete, insert = book.before_size[entry], book.after_size[entry]
        for m in range(insert):
            if entry == OTHER:
                tree, node = BYTES + (256 if m else 0), 1
                for shift in range(7, -1, -1):
                    bit = 0 if decode else (np.int64(original[begin + m]) >> shift) & 1
                    node = 2 * node + decide(state, stream, model, tree + node, bit, decode)
                byte = np.uint8(node - 256)
            else:
                byte = book.after[entry, m]
            broken = broken or byte == 10
            if decode:
                out = _room(out, length)
                out[length] = byte
                length += 1
                if length > most or state[2] > np.uint64(len(stream) + range_coder.CODE_BYTES):
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
            if length > most:
                return out[:length], False
        i += max(delete, 1)
    return out[:length], True


@making
def _room(array, length):
    """Return `array`, or a copy twice as long if `array` is full."""
    if length < array.shape[0]:
        return array
    longer = np.empty(2 * array.shape[0], np.uint8)
    longer[:length] = array
    return longer


def edits_capacity(canonical: NDArray[np.uint8], edits: Edits) -> int:
    """Return the bytes of output buffer that `put_edits` may need: every decision takes at most two."""
    if not len(edits):
        return 16
    each = len(BREAKS) + 1 + 4 * LENGTH_BITS
    decisions = 1 + len(canonical) + 1 + chances(canonical, book()) + each * len(edits) + 8 * int(edits[:, 3].sum())
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
    """Encode the edits of a document.

    Args:
        state: of a range encoder behind the document's tokens.
        out: buffer of the stream, with `edits_capacity` bytes beyond those written.
        canonical: bytes that the tokens stand for.
        original: bytes of the document.
        edits: from `align`.
        lossy: whether the tokenizer loses something of most texts.
        model: the adaptive probabilities; None: those of `edit_model.new_model`.
    """
    code_bit(state, out, _EDITED[lossy], int(len(edits) > 0), False)
    if len(edits):
        _code(state, out, model or edit_model.new_model(), canonical, original, edits, book(), False, 0)


def take_edits(
    state: State,
    data: NDArray[np.uint8],
    canonical: bytes,
    lossy: bool,
    size: int | None = None,
    most: int = _MOST_BYTES,
) -> bytes:
    """Decode the original bytes of a document.

    Args:
        state: of a range decoder that has read the document's tokens.
        data: the stream.
        canonical: bytes that the tokens stand for.
        lossy: as for `put_edits`.
        size: bytes of the document, where they are known; no more are decoded.
        most: bytes that the document has at most, where its size is not known.

    Raises:
        FormatError: the stream ends before the edits, goes on after them, or the document has another size.
    """
    stream, text = data.copy(), np.frombuffer(canonical, np.uint8)  # writable: one compiled function codes both ways
    whole, original = True, text
    if code_bit(state, stream, _EDITED[lossy], 0, True):
        none = np.zeros((0, 4), np.int64)
        original, whole = _code(
            state, stream, edit_model.new_model(), text, text, none, book(), True, most if size is None else size
        )
    if not whole:
        raise FormatError(f"record of {len(data)} bytes ends inside the edits of its document; the archive is damaged")
    if size is not None and len(original) != size:
        raise FormatError(f"record of {len(data)} bytes has a document of {len(original)}, expected {size}")
    if not range_coder.ended(state, len(data)):
        raise FormatError(f"record of {len(data)} bytes does not end with its document; the archive is damaged")
    return original.tobytes()
