"""Code quantized matrices: adaptive tables whose context is the expected size of each integer.

A matrix is coded column by column, as the trellis path runs. The expected magnitude of a weight is the running mean of
its row, times the ratio of this column so far to the rows' means. Divided by the weight's step, the expected magnitude
is that of the integer, and its logarithm in quarter octaves is the context. So the coder learns rows and columns of any
scale, and the file need not state the scales. Everything is integer arithmetic, the same on every machine.

An integer q with parity z (0 off the trellis) is coded as k = (q - z) / 2, or as q itself where there is no trellis. k
>> s is one of 32 symbols under the context's counts, and the s bits below are coded as they are. s is 0 up to an
expected magnitude of 4. A symbol at either end of the table is followed by how far k >> s lies beyond that end. The
steps come first, in the same stream.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from codec.compiled import compiled, compiler
from codec.entropy import range_coder
from codec.entropy.adaptive_bit import EVEN, MOST, code_adaptive
from codec.errors import FormatError
from codec.quantization.quantized import OnTrellis, Quantized
from codec.quantization.trellis import transitions

LIMIT = 1 << 23
"""The largest |q| that can be coded."""

SYMBOLS = 32
"""Symbols of every table: the integers from -16 to 15; either end stands for all integers beyond, too."""

_BINS = 64  # contexts: expected magnitudes from 2^-4 to 2^12 in quarter octaves
_INCREMENT, _NONE = np.int32(32), np.int32(0)  # added to the counts of a symbol coded, and of others
_PRIOR_TOTAL = 16 * 32  # what a context's counts sum to, about, before it has seen anything
_MOST_TOTAL = 1 << 20  # counts are halved here: 32,768 symbols of memory cost 0.1 % over a stationary distribution
_LENGTHS = 25  # bit lengths of what lies beyond the ends of a table
_DIGITS = 2 + 2 * SYMBOLS + 3  # tables of 5-bit digits of steps

_PRIOR = 2  # columns that the matrix's mean counts for in a row's
_PRIOR_ROWS = 8  # rows that "as the rows say" counts for in a column's
_MEMORY = 1024  # columns that a row's mean remembers

# Magnitudes are in units of 2^-16 of the matrix's least step; caps on them and on sums keep every product below 2^63,
# so that no stream can make a context overflow.
_OCTAVES = np.array([65536, 77936, 92682, 110218], np.int64)  # 2^(i/4) of the least step
_FALLING = np.array([65536, 55109, 46341, 38968], np.int64)  # 2^(-i/4)
_MOST_OCTAVES = 20  # between the least and the largest step; beyond, contexts are only less apt
_MAGNITUDE = 1 << 38
_SUM = np.int64(1 << 50)
_LEAST_RATIO, _MOST_RATIO = 1 << 6, 1 << 20  # of a column to its rows' means, in units of 2^-12
_REFRESH = 16  # rows between new estimates of that ratio
_LEVEL = np.int64(4 * (1023 + 16 - 4))  # quarter octaves of a float64 of 2^-4 steps

_inlined = compiler(inline="always")


class _Models(NamedTuple):
    """The statistics that a stream has learned."""

    sums: NDArray[np.int32]  # [2 _BINS, SYMBOLS]: of integers by context, counts up to and with each symbol's
    bits: NDArray[np.int32]  # slots of `codec.entropy.adaptive_bit` for what lies beyond the tables
    seen: NDArray[np.int16]


@lru_cache
def prior_counts(scale: int) -> NDArray[np.int32]:
    """Return the counts of contexts that have seen nothing: about a two-sided exponential of the expected magnitude.

    Args:
        scale: 2 on a trellis, whose integers are in half steps, else 1.

    Returns:
        int32 [2 _BINS, SYMBOLS].
    """
    counts = np.empty((_BINS, 2, SYMBOLS), np.int32)
    centers = 2 * np.arange(-SYMBOLS // 2, SYMBOLS // 2) + 1
    for b in range(_BINS):
        expected = (int(4 * _OCTAVES[b & 3]) << (b >> 2)) >> 16  # in units of 2^-6
        for parity in range(2):
            distances = np.abs(scale * ((centers << shift_of(b, scale)) - 1) + 2 * parity)  # in half integers
            exponents = distances * 185 // (expected + 19)  # quarter octaves; 185 is 4 / ln 2 / 2 in those units
            weights = _FALLING[exponents & 3] >> np.minimum(exponents >> 2, 30)
            counts[b, parity] = 1 + _PRIOR_TOTAL * weights // weights.sum()
    return counts.reshape(2 * _BINS, SYMBOLS)


@_inlined
def _shift_of(b, scale):
    return max(0, (b >> 2) - 4 - scale)


def shift_of(b: int, scale: int) -> int:
    """Return how many low bits of an integer in context `b` are coded as they are."""
    return max(0, (b >> 2) - 4 - scale)


def _new_models(scale: int) -> _Models:
    slots = 2 * _LENGTHS + _LENGTHS * _LENGTHS
    return _Models(_sums(prior_counts(scale)), np.full(slots, EVEN, np.int32), np.zeros(slots, np.int16))


def _sums(counts: NDArray[np.int32]) -> NDArray[np.int32]:
    return counts.cumsum(1, dtype=np.int32)


def quarter_octaves(steps: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return 4 log2 of steps, int64 [N], its fraction linear in the mantissa; a step of 0 counts as the least other."""
    bits = np.ascontiguousarray(steps, np.float32).view(np.uint32).astype(np.int64)
    levels = bits >> 21
    positive = levels[steps > 0]
    return np.where(steps > 0, levels, positive.min() if positive.size else 0)


@_inlined
def _power(e):
    return _OCTAVES[e & 3] << min(e >> 2, _MOST_OCTAVES)


@compiled
def _find(sums, target):
    """Return the symbol whose counts a target below the total falls into: loops without branches become vectors."""
    symbol = np.int32(0)
    for s in range(sums.shape[0]):
        symbol = np.int32(symbol + (np.int32(1) if sums[s] <= target else np.int32(0)))
    return np.int64(symbol)


@compiled
def _count(sums, symbol):
    """Add a symbol to the counts of a table."""
    first = np.int32(symbol)
    for s in range(sums.shape[0]):
        sums[s] = np.int32(sums[s] + (_INCREMENT if np.int32(s) >= first else _NONE))
    if sums[SYMBOLS - 1] > _MOST_TOTAL:
        before = total = 0
        for s in range(SYMBOLS):
            before, count = sums[s], sums[s] - before
            total += (count + 1) >> 1
            sums[s] = total


@_inlined
def _code_symbol(coder, stream, sums, symbol, decode):
    """Encode `symbol`, or decode a symbol, under the sums of a table's counts, and count the symbol.

    Returns:
        (the state of `range_coder` as a tuple, the symbol).
    """
    first, size, n = coder
    total = np.uint64(sums[SYMBOLS - 1])
    unit = size // total
    if decode:
        symbol = _find(sums, np.int32(min(first // unit, total - np.uint64(1))))
    start = np.int64(sums[symbol - 1]) if symbol > 0 else np.int64(0)
    if decode:
        coder = range_coder.after_take(first, size, n, stream, start, sums[symbol] - start, unit)
    else:
        coder = range_coder.after_put(first, size, n, stream, start, sums[symbol] - start, unit)
    _count(sums, symbol)
    return coder, symbol


@compiled
def _code_beyond(state, stream, bits, seen, end, size, decode):
    """Code how far an integer lies beyond an end of its table: the bit length in unary, then the bits."""
    length, more = 0, 1
    while length < _LENGTHS - 1 and more:
        more = 1 if size >> length else 0
        more = code_adaptive(state, stream, bits, seen, end * _LENGTHS + length, more, MOST, decode)
        length += more
    found = 1 if length else 0
    for n in range(length - 2, -1, -1):
        slot = (2 + length) * _LENGTHS + n
        found = 2 * found + code_adaptive(state, stream, bits, seen, slot, (size >> n) & 1, MOST, decode)
    return found


@_inlined
def _code_low(coder, stream, shift, low, decode):
    """Code the `shift` low bits as they are; returns the state and the bits."""
    first, size, n = coder
    unit = size >> np.uint64(shift)
    if decode:
        low = min(np.int64(first // unit), (1 << shift) - 1)
        coder = range_coder.after_take(first, size, n, stream, low, 1, unit)
    else:
        coder = range_coder.after_put(first, size, n, stream, low, 1, unit)
    return coder, low


@compiled
def _code_digits(state, stream, words, digits, kind, sums, decode):
    """Code words of 5-bit digits: of two digits, the second depends on the first; three digits (float16) are
    independent.
    """
    coder = state[0], state[1], state[2]
    for i in range(words.shape[0]):
        table, word = kind, 0
        for d in range(digits - 1, -1, -1):
            coder, digit = _code_symbol(coder, stream, sums[table], (words[i] >> (5 * d)) & 31, decode)
            word = (word << 5) | digit
            table = 2 + SYMBOLS * kind + digit if digits == 2 else 2 + 2 * SYMBOLS + d
        words[i] = word
    state[0], state[1], state[2] = coder


@compiled
def _code_columns(
    state, stream, sums, bits, seen_bits, symbols, rows, columns, following, on_rows, on_columns, means,
    begin, trellis, decode,
):  # fmt: skip
    """Code the columns of `symbols` [C, R] from `begin` on while `stream` has room; when decoding, to its end.

    `rows` and `columns` are the quarter octaves of their steps above the least step; `means` holds the expected
    magnitude of each row.

    Returns:
        (the next column, the trellis state there).
    """
    width, height = symbols.shape
    scale = 2 if following.shape[0] else 1
    room = np.uint64(stream.shape[0])
    coder = state[0], state[1], state[2]
    for j in range(begin, width):
        if not decode and coder[2] + np.uint64(16 * height + 64) > room:
            return j, trellis
        rate = max(65536 // (j + _PRIOR + 1), 65536 // _MEMORY)
        seen = expected = np.int64(0)
        ratio, inverse = np.int64(1 << 12), np.int64(1 << 12)
        line = symbols[j]
        trellised = scale == 2 and on_columns[j]
        for r in range(height):
            mean = means[r]
            if r == 0:
                seen = expected = _PRIOR_ROWS * mean
            if r % _REFRESH == 0:
                ratio = min(max(seen // ((expected >> 12) + 1), np.int64(_LEAST_RATIO)), np.int64(_MOST_RATIO))
                inverse = (1 << 24) // ratio
            e = rows[r] + columns[j]
            level = (np.float64(((mean * ratio) >> 12) + 1).view(np.int64) >> 50) - _LEVEL - e
            b = min(max(level, 0), _BINS - 1)
            parity = trellis & 1 if trellised and on_rows[r] else 0
            k = np.int64(0) if decode else np.int64(line[r] - parity) // scale
            shift = _shift_of(b, scale)
            index = min(max((k >> shift) + SYMBOLS // 2, 0), SYMBOLS - 1)
            coder, index = _code_symbol(coder, stream, sums[2 * b + parity], index, decode)
            cell = np.int64(index - SYMBOLS // 2)
            if index == 0 or index == SYMBOLS - 1:
                state[0], state[1], state[2] = coder
                if index == 0:
                    cell -= _code_beyond(state, stream, bits, seen_bits, 0, cell - (k >> shift), decode)
                else:
                    cell += _code_beyond(state, stream, bits, seen_bits, 1, (k >> shift) - cell, decode)
                coder = state[0], state[1], state[2]
            if shift:
                coder, low = _code_low(coder, stream, shift, k - ((k >> shift) << shift), decode)
                cell = (cell << shift) | low
            q = scale * cell + parity
            if decode:
                q = min(max(q, -2 * LIMIT), 2 * LIMIT)
                line[r] = q
            if trellised and on_rows[r]:
                trellis = following[trellis, (q >> 1) & 1]
            size = min(abs(q) * _power(e), _MAGNITUDE)
            seen = min(seen + size, _SUM)
            expected = min(expected + mean, _SUM)
            means[r] = mean + (((min((size * inverse) >> 12, _MAGNITUDE) - mean) * rate) >> 16)
        state[0], state[1], state[2] = coder
        if decode and coder[2] > room + np.uint64(range_coder.CODE_BYTES):
            return j, trellis
    return width, trellis


def _levels(matrix: Quantized) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the quarter octaves of row and column steps above the least step."""
    width = matrix.symbols.shape[1]
    rows = quarter_octaves(matrix.rows)
    columns = np.zeros(width, np.int64) if matrix.columns is None else quarter_octaves(matrix.columns)
    return rows - rows.min(initial=1 << 30), columns - columns.min(initial=1 << 30)


def _path(matrix: Quantized) -> tuple[NDArray[np.int64], NDArray[np.bool_], NDArray[np.bool_]]:
    """Return the trellis's transitions, and the rows and columns that are on its path."""
    following = transitions(matrix.states) if matrix.states else np.zeros((0, 2), np.int64)
    on = matrix.on or OnTrellis.everywhere(*matrix.symbols.shape)
    return following, on.rows, on.columns


def _first_means(typical: int, rows: int) -> NDArray[np.int64]:
    return np.full(rows, min(int(_OCTAVES[typical & 3]) << min(typical >> 2, 24), _MAGNITUDE), np.int64)


def typical_of(matrix: Quantized) -> int:
    """Return the quarter octaves of the mean magnitude above the least step, the first guess for every row."""
    if not matrix.symbols.size:
        return 0
    rows, columns = _levels(matrix)
    across = np.exp2(columns / 4)
    height = max(1, 65536 // len(across))  # rows taken together: no second matrix is made
    by_row = np.concatenate([np.abs(matrix.symbols[at : at + height]) @ across for at in range(0, len(rows), height)])
    mean = float(by_row @ np.exp2(rows / 4)) / matrix.symbols.size
    return max(0, min(4 * _MOST_OCTAVES, round(4 * float(np.log2(max(1.0, mean))))))


def encode_matrix(matrix: Quantized, words: Sequence[NDArray[np.uint16]], rows: int, typical: int) -> bytes:
    """Code the words of a matrix's steps, then the matrix's integers.

    Args:
        matrix: the integers, and the steps that the words stand for.
        words: lists of words, 15 bits each for steps by row; 10 bits each where columns have steps, too.
        rows: how many words of each list are for rows.
        typical: `typical_of` the matrix.

    Raises:
        FormatError: an integer is beyond LIMIT.
    """
    symbols = np.ascontiguousarray(matrix.symbols.T)
    if matrix.largest > LIMIT:
        raise FormatError(f"integers up to {matrix.largest}, expected at most {LIMIT}; use coarser steps")
    state = range_coder.new_encoder()
    out = np.zeros(2 * symbols.size + 16 * sum(map(len, words)) + 16 * symbols.shape[1] + 256, np.uint8)
    for each in words:
        _code_steps(state, out, each.astype(np.int64), rows, False)
    models = _new_models(2 if matrix.states else 1)
    levels, means = _levels(matrix), _first_means(typical, symbols.shape[1])
    column, trellis = 0, 0
    while column < len(symbols):
        column, trellis = _code_columns(
            state, out, *models, symbols, *levels, *_path(matrix), means, column, trellis, False
        )
        if column < len(symbols):
            out = np.concatenate((out, np.zeros(len(out) + 16 * symbols.shape[1] + 64, np.uint8)))
    return out[: range_coder.finish(state, out)].tobytes()


def _code_steps(
    state: range_coder.State, stream: NDArray[np.uint8], words: NDArray[np.int64], rows: int, decode: bool
) -> None:
    """Encode the words of steps, or decode them in place: those for rows, then those for columns."""
    digits = 3 if rows == len(words) else 2
    sums = _sums(np.full((_DIGITS, SYMBOLS), 16 if digits == 3 else 1, np.int32))
    for kind, part in enumerate((words[:rows], words[rows:])):
        _code_digits(state, stream, part, digits, kind, sums, decode)


class Decoder:
    """A decoder of a stream of `encode_matrix`: first the lists of words of steps, then the integers of the matrix."""

    def __init__(self, stream: bytes):
        self._size = len(stream)
        self._data = np.frombuffer(stream, np.uint8).copy()  # one compiled function serves both ways: writable
        self._state = range_coder.new_encoder()
        range_coder.start_decoder(self._state, self._data)

    def words(self, count: int, rows: int) -> NDArray[np.uint16]:
        """Decode a list of `count` words, the first `rows` of them for rows: uint16 [count]."""
        words = np.zeros(count, np.int64)
        _code_steps(self._state, self._data, words, rows, True)
        return words.astype(np.uint16)

    def integers(self, matrix: Quantized, typical: int) -> None:
        """Fill in the integers of a matrix whose steps are known.

        Args:
            matrix: its `symbols` are overwritten.
            typical: `typical_of` the matrix, as the part states.

        Raises:
            FormatError: the stream ends before the integers do, or after them.
        """
        height, width = matrix.symbols.shape
        symbols = np.zeros((width, height), np.int32)
        models, means = _new_models(2 if matrix.states else 1), _first_means(typical, height)
        found, _ = _code_columns(
            self._state, self._data, *models, symbols, *_levels(matrix), *_path(matrix), means, 0, 0, True
        )
        if found < width:
            raise FormatError(
                f"stream of {self._size} bytes ends inside a matrix of {symbols.size} integers; the file is damaged"
            )
        if not range_coder.ended(self._state, self._size):
            raise FormatError(f"stream of {self._size} bytes does not end with its matrix; the file is damaged")
        matrix.symbols[:] = symbols.T
