"""A range coder with 56-bit state, byte by byte: the integer core below text and weights.

The state is uint64[3]: low, range and bytes written in an encoder; code - low, range and bytes read in a decoder.
Invariants: after every symbol 2^48 <= range <= 2^56 and low < 2^56, so an interval of a total of 2^24 loses at most
2^-24 of its width, one of 2^27 2^-21. A carry out of low is added to the bytes already written. A stream ends with the
shortest bytes whose value, followed by zeros for ever, lies in the last interval: on average 5 bits more than the ideal
code length.
The decoder reads zeros beyond the end, at most CODE_BYTES of them for a whole stream, so a truncated stream is noticed.

Construction: range coding after G. N. N. Martin (1979), with carry propagation into the output.
"""

import numpy as np
from numpy.typing import NDArray

from codec.compiled import compiled

State = NDArray[np.uint64]

_TOP = np.uint64(1 << 56)
_BOTTOM = np.uint64(1 << 48)
_MASK = np.uint64((1 << 56) - 1)
_EIGHT = np.uint64(8)
_48 = np.uint64(48)
_ONE = np.uint64(1)

CODE_BYTES = 7
"""Bytes of state: a decoder has read this many bytes before it decodes the first symbol."""

MAX_SYMBOL_BYTES = 5
"""Bytes that one symbol can add to a stream, for the size of output buffers (27 bits and a carried-over byte)."""


def new_encoder() -> State:
    """Return the state of an encoder that has written nothing."""
    return np.array([0, 1 << 56, 0], np.uint64)


@compiled
def _carry(out: NDArray[np.uint8], n: np.uint64) -> None:
    i = n - _ONE
    while out[i] == 255:
        out[i] = 0
        i -= _ONE
    out[i] += np.uint8(1)


@compiled
def put(state: State, out: NDArray[np.uint8], start: int, frequency: int, unit: np.uint64) -> None:
    """Encode the interval [start, start + frequency) of a total whose share of the range is `unit` = range // total."""
    state[0], state[1], state[2] = after_put(state[0], state[1], state[2], out, start, frequency, unit)


@compiled
def after_put(
    low: np.uint64, size: np.uint64, n: np.uint64, out: NDArray[np.uint8], start: int, frequency: int, unit: np.uint64
) -> tuple[np.uint64, np.uint64, np.uint64]:
    """Return what a state of `put` becomes, for loops that keep its three numbers in registers."""
    low += unit * np.uint64(start)
    if low >= _TOP:
        _carry(out, n)
        low -= _TOP
    size = unit * np.uint64(frequency)
    while size < _BOTTOM:
        out[n] = np.uint8(low >> _48)
        n += _ONE
        low = (low << _EIGHT) & _MASK
        size <<= _EIGHT
    return low, size, n


@compiled
def finish(state: State, out: NDArray[np.uint8]) -> int:
    """Write the shortest end of the stream and return the stream's length in bytes; `out` needs 8 bytes to spare."""
    low, n = state[0], state[2]
    end = low + state[1]
    for extra in range(CODE_BYTES + 1):
        grid = _ONE << np.uint64(56 - 8 * extra)
        value = (low + grid - _ONE) // grid * grid
        if value < end:
            break
    if value >= _TOP:
        _carry(out, n)
        value -= _TOP
    for _ in range(extra):
        out[n] = np.uint8(value >> _48)
        n += _ONE
        value = (value << _EIGHT) & _MASK
    return int(n)


@compiled
def start_decoder(state: State, data: NDArray[np.uint8]) -> None:
    """Set `state` to that of a decoder at the beginning of `data`."""
    code = np.uint64(0)
    for i in range(CODE_BYTES):
        code = (code << _EIGHT) | (np.uint64(data[i]) if i < data.shape[0] else np.uint64(0))
    state[0], state[1], state[2] = code, _TOP, np.uint64(CODE_BYTES)


@compiled
def take(state: State, data: NDArray[np.uint8], start: int, frequency: int, unit: np.uint64) -> None:
    """Remove the interval of the symbol found at code // unit, as `put` added the interval."""
    state[0], state[1], state[2] = after_take(state[0], state[1], state[2], data, start, frequency, unit)


@compiled
def after_take(
    code: np.uint64, size: np.uint64, n: np.uint64, data: NDArray[np.uint8], start: int, frequency: int, unit: np.uint64
) -> tuple[np.uint64, np.uint64, np.uint64]:
    """Return what a state of `take` becomes, as `after_put` does."""
    size = unit * np.uint64(frequency)
    code = min(code - unit * np.uint64(start), size)  # beyond the interval, as in a damaged stream, it stays there
    while size < _BOTTOM:
        byte = np.uint64(data[n]) if n < np.uint64(data.shape[0]) else np.uint64(0)
        code = (code << _EIGHT) | byte
        n += _ONE
        size <<= _EIGHT
    return code, size, n


def written_bits(state: State) -> float:
    """Return the bits that an encoder has used up, those that it has not written yet included."""
    return 8.0 * float(state[2]) + 56.0 - float(np.log2(float(state[1])))


def ended(state: State, size: int) -> bool:
    """Return whether a decoder that has taken every symbol stands where `finish` ends a stream of `size` bytes.

    Several streams decode to the same symbols. `finish` writes the stream of least value; every other stream counts as
    damaged.
    """
    left = size + CODE_BYTES - int(state[2])
    inside = bool(state[0] < state[1])  # a code below the interval wraps around, which symbols of total 1 do not show
    return inside and (left == 0 or (left == 1 and bool(state[0] < _BOTTOM)))


@compiled
def target(state: State, unit: np.uint64, total: int) -> int:
    """Return the cumulative frequency that the next symbol's interval contains."""
    return min(int(state[0] // unit), total - 1)


@compiled
def encode_intervals(
    state: State, out: NDArray[np.uint8], starts: NDArray[np.int64], frequencies: NDArray[np.int64], bits: int
) -> None:
    """Encode intervals [N] of a total of 2^bits; `out` needs MAX_SYMBOL_BYTES free bytes for each interval."""
    shift = np.uint64(bits)
    for i in range(starts.shape[0]):
        put(state, out, starts[i], frequencies[i], state[1] >> shift)
