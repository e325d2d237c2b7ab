"""Entropy coding of a pack's integers: adaptive binary models whose context is the expected size of each integer.

A matrix is coded down one column after the other, as the trellis path runs. The expected magnitude of a weight is the
running mean of its row times how this column has run against the rows' means so far; over the weight's step it is the
expected magnitude of the integer, and its logarithm in quarter octaves is the context. So the coder learns rows and
columns of any scale without being sent one. Everything is integer arithmetic, the same on every machine.

An integer q with parity z0 (0 off the trellis) is coded as k = (q - z0) / 2 (q itself where there is none): its sign
bit, the bit length of its magnitude in unary, then the bits below the highest one, each under an adaptive probability.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from codec.compiled import compiled
from codec.entropy import range_coder
from codec.entropy.adaptive_bit import EVEN, MOST, code_adaptive
from codec.errors import FormatError
from codec.quantization.quantized import OnTrellis, Quantized
from codec.quantization.trellis import transitions

LIMIT = 1 << 23
"""Largest |q| that can be coded."""

_BINS = 64  # contexts: expected magnitudes from 2^-4 to 2^12 in quarter octaves
_LENGTHS = 25  # bit lengths of a magnitude
_TREE = 8  # nodes of the first three bits below the highest
_NODES = _LENGTHS + _LENGTHS * _TREE  # of one context: unary lengths, then a tree for each length
_SIGNS = _BINS * 4 * _NODES  # where the sign bits of contexts begin
_TAIL = _SIGNS + 2 * _BINS  # adaptive bits shared by all contexts: what is below the tree, by bit length
_MODELS = _TAIL + _LENGTHS * _LENGTHS

_PRIOR = 2  # columns that the matrix's mean counts for in a row's
_PRIOR_ROWS = 8  # rows that "as the rows say" counts for in a column's

# Magnitudes are in units of 2^-16 of the matrix's least step; caps on them, on what one column adds to a row's sum, and
# on the sums keep every product below 2^63, so that no stream can make a context overflow.
_OCTAVES = np.array([65536, 77936, 92682, 110218], np.int64)  # 2^(i/4) of the least step
_MOST_OCTAVES = 20  # between the least and the largest step; beyond, contexts are only less apt
_MAGNITUDE = 1 << 38
_SUM = np.int64(1 << 61)
_LEAST_RATIO, _MOST_RATIO = 1 << 6, 1 << 20  # of a column to its rows' means, in units of 2^-12
_REFRESH = 16  # rows between new estimates of that ratio


class _Models(NamedTuple):
    """Slots of `codec.entropy.adaptive_bit` that matrices of a group share."""

    probabilities: NDArray[np.int32]  # [_MODELS]
    counts: NDArray[np.int16]  # [_MODELS]


def _new_models() -> _Models:
    """Make models that have seen nothing."""
    return _Models(np.full(_MODELS, EVEN, np.int32), np.zeros(_MODELS, np.int16))


def quarter_octaves(steps: NDArray[np.float32]) -> NDArray[np.int64]:
    """4 log2 of positive steps, its fraction linear in the mantissa; the least of them for steps of 0: int64 [N]."""
    bits = np.ascontiguousarray(steps, np.float32).view(np.uint32).astype(np.int64)
    levels = bits >> 21
    positive = levels[steps > 0]
    return np.where(steps > 0, levels, positive.min() if positive.size else 0)


@compiled
def _power(e):
    return _OCTAVES[e & 3] << min(e >> 2, _MOST_OCTAVES)


@compiled
def _bin(expected, power):
    """The context for an expected magnitude over a step of `power`."""
    ratio = (expected << 6) // power + 1  # expected |q| in units of 2^-6
    length = 0
    while ratio >> (length + 1):
        length += 1
    fraction = (ratio >> (length - 2)) & 3 if length >= 2 else 0
    return min(max(4 * (length - 2) + fraction, 0), _BINS - 1)


@compiled
def _code_integer(state, stream, probabilities, counts, context, k, decode):
    """Encode `k`, or decode and return it, under the models of `context`."""
    negative, size = (1, -k - 1) if k < 0 else (0, k)
    negative = code_adaptive(state, stream, probabilities, counts, _SIGNS + context, negative, MOST, decode)
    base = (2 * context + negative) * _NODES
    length, more = 0, 1
    while length < _LENGTHS - 1 and more:
        more = 1 if size >> length else 0
        more = code_adaptive(state, stream, probabilities, counts, base + length, more, MOST, decode)
        length += more
    magnitude, node = 1 if length else 0, 1
    for n in range(length - 2, -1, -1):
        in_tree = node < _TREE
        slot = base + _LENGTHS + length * _TREE + node if in_tree else _TAIL + length * _LENGTHS + n
        bit = code_adaptive(state, stream, probabilities, counts, slot, (size >> n) & 1, MOST, decode)
        if in_tree:
            node = 2 * node + bit
        magnitude = 2 * magnitude + bit
    return -magnitude - 1 if negative else magnitude


@compiled
def _ratio(seen, expected):
    return min(max(seen // ((expected >> 12) + 1), _LEAST_RATIO), _MOST_RATIO)


@compiled
def _code(
    state, stream, probabilities, counts, symbols, rows, columns, following, on_rows, on_columns, typical, decode
):  # arrays one by one: a tuple of them would be counted in and out at each call
    """Encode `symbols` [R, C] into `stream`, or decode them from it; False if the stream ends early.

    `rows` and `columns` are the quarter octaves of their steps above the least; `typical` that of a magnitude.
    """
    height, width = symbols.shape
    first = _PRIOR * min(_power(typical), _MAGNITUDE)
    sums = np.full(height, first)  # of each row's magnitudes, over the ratio of their columns
    seen, expected = np.zeros(width, np.int64), np.zeros(width, np.int64)  # sums of each column, and as the rows say
    ratios = np.full(width, np.int64(1 << 12))
    scale = 2 if following.shape[0] else 1
    trellis = 0
    for j in range(width):
        for r in range(height):
            mean = sums[r] // (j + _PRIOR)
            if r == 0:
                seen[j] = expected[j] = _PRIOR_ROWS * mean
            if r % _REFRESH == 0:
                ratios[j] = _ratio(seen[j], expected[j])
            power = _power(rows[r] + columns[j])
            on = scale == 2 and on_rows[r] and on_columns[j]
            parity = trellis & 1 if on else 0
            context = 2 * _bin((mean * ratios[j]) >> 12, power) + parity
            k = 0 if decode else (symbols[r, j] - parity) // scale
            q = scale * _code_integer(state, stream, probabilities, counts, context, k, decode) + parity
            if decode:
                symbols[r, j] = q
            if on:
                trellis = following[trellis, (q >> 1) & 1]
            size = min(abs(q) * power, _MAGNITUDE)
            seen[j] = min(seen[j] + size, _SUM)
            expected[j] = min(expected[j] + mean, _SUM)
            sums[r] = min(sums[r] + min((size << 12) // ratios[j], _MAGNITUDE), _SUM)
        if decode and state[2] > np.uint64(stream.shape[0] + range_coder.CODE_BYTES):
            return False
    return True


@dataclass(frozen=True)
class Coded:
    """What a decoder must be told of a matrix besides its steps, and what it cost."""

    typical: int  # quarter octaves of the mean magnitude over the least step
    bits: float


def _levels(matrix: Quantized) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Quarter octaves of row and column steps above the least."""
    width = matrix.symbols.shape[1]
    rows = quarter_octaves(matrix.rows)
    columns = np.zeros(width, np.int64) if matrix.columns is None else quarter_octaves(matrix.columns)
    return rows - rows.min(initial=1 << 30), columns - columns.min(initial=1 << 30)


def _path(matrix: Quantized) -> tuple[NDArray[np.int64], NDArray[np.bool_], NDArray[np.bool_]]:
    """Return the trellis's transitions, and the rows and columns that are on its path."""
    following = transitions(matrix.states) if matrix.states else np.zeros((0, 2), np.int64)
    on = matrix.on or OnTrellis.everywhere(*matrix.symbols.shape)
    return following, on.rows, on.columns


def encode_matrices(matrices: Sequence[tuple[int, Quantized]], groups: int) -> tuple[bytes, list[Coded]]:
    """Code matrices one after the other.

    Args:
        matrices: (group, matrix); matrices of a group share their adaptive models.
        groups: how many groups there are.

    Returns:
        (the stream, what the decoder must be told of each matrix).

    Raises:
        FormatError: an integer beyond LIMIT.
    """
    models = [_new_models() for _ in range(groups)]
    state = range_coder.new_encoder()
    size = sum(matrix.symbols.size for _, matrix in matrices)
    out = np.zeros(16 * size + 64, np.uint8)
    coded = []
    for group, matrix in matrices:
        symbols = np.ascontiguousarray(matrix.symbols)
        largest = max(int(symbols.max(initial=0)), -int(symbols.min(initial=0)))
        if largest > LIMIT:
            raise FormatError(f"integers up to {largest}, expected at most {LIMIT}; use coarser steps")
        rows, columns = _levels(matrix)
        typical = _typical(symbols, rows, columns)
        before = range_coder.written_bits(state)
        _code(state, out, *models[group], symbols, rows, columns, *_path(matrix), typical, False)
        coded.append(Coded(typical, range_coder.written_bits(state) - before))
    return out[: range_coder.finish(state, out)].tobytes(), coded


def _typical(symbols: NDArray[np.int32], rows: NDArray[np.int64], columns: NDArray[np.int64]) -> int:
    if not symbols.size:
        return 0
    by_row = np.abs(symbols) @ np.exp2(columns / 4)  # of sums, so that no second matrix is made
    mean = float(by_row @ np.exp2(rows / 4)) / symbols.size
    return max(0, min(4 * _MOST_OCTAVES, round(4 * float(np.log2(max(1.0, mean))))))


def decode_matrices(stream: bytes, shapes: Sequence[tuple[int, Quantized, int]], groups: int) -> None:
    """The counterpart of `encode_matrices`: fills in the `symbols` of matrices whose steps are known.

    Args:
        stream: what `encode_matrices` returned.
        shapes: (group, matrix to fill, typical) of each.
        groups: as they were when encoding.

    Raises:
        FormatError: the stream ends before its integers, or after them.
    """
    models = [_new_models() for _ in range(groups)]
    data = np.frombuffer(stream, np.uint8).copy()  # one compiled function serves both ways, so it must be writable
    state = range_coder.new_encoder()
    range_coder.start_decoder(state, data)
    for group, matrix, typical in shapes:
        rows, columns = _levels(matrix)
        if not _code(state, data, *models[group], matrix.symbols, rows, columns, *_path(matrix), typical, True):
            raise FormatError(
                f"stream of {len(stream)} bytes ends inside a matrix of {matrix.symbols.size} integers; "
                "the file is damaged"
            )
    if not range_coder.ended(state, len(stream)):
        raise FormatError(f"stream of {len(stream)} bytes does not end with its last matrix; the file is damaged")
