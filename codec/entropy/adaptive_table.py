"""Adaptive entropy coding of integer tensors: one range-coded stream, a frequency table for each kind of tensor.

A table starts flat, counts the symbols coded, and halves its counts at `LIMIT`, so it follows the data within about
32,000 symbols. Everything is integer, so a stream decodes to the same symbols on every machine.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from codec.compiled import compiled
from codec.entropy import range_coder
from codec.errors import FormatError

INCREMENT = 32
"""Added to the count of each symbol coded; counts start at 1, so a table is learnt within a few hundred symbols."""

LIMIT = 1 << 20
"""Total at which counts are halved. 2^20 / 32 symbols of memory cost about 0.1 % over a stationary distribution."""

MAX_ALPHABET = 1 << 16


@dataclass(frozen=True)
class Alphabet:
    """The symbols low .. high of a table."""

    low: int
    high: int

    def __post_init__(self) -> None:
        in_order = -(1 << 31) <= self.low <= self.high < 1 << 31
        if not in_order or self.high - self.low >= MAX_ALPHABET:
            raise FormatError(f"alphabet {self.low} to {self.high}: expected 1 to {MAX_ALPHABET} symbols of int32")


def _new_table(alphabet: Alphabet) -> NDArray[np.int64]:
    """Return a Fenwick tree over 2^k symbols in [0] and their counts in [1]: int64 [2, 2^k + 1]."""
    symbols = alphabet.high - alphabet.low + 1
    table = np.zeros((2, (1 << (symbols - 1).bit_length()) + 1), np.int64)
    table[1, :symbols] = 1
    _rebuild(table)
    return table


@compiled
def _rebuild(table: NDArray[np.int64]) -> None:
    tree, counts = table[0], table[1]
    size = tree.shape[0] - 1
    tree[:] = 0
    for i in range(1, size + 1):
        tree[i] += counts[i - 1]
        parent = i + (i & -i)
        if parent <= size:
            tree[parent] += tree[i]


@compiled
def _count(table: NDArray[np.int64], symbol: int) -> None:
    tree, counts = table[0], table[1]
    size = tree.shape[0] - 1
    counts[symbol] += INCREMENT
    i = symbol + 1
    while i <= size:
        tree[i] += INCREMENT
        i += i & -i
    if tree[size] > LIMIT:
        for s in range(size):
            counts[s] = (counts[s] + 1) >> 1
        _rebuild(table)


@compiled
def _encode(state, out, table, symbols):
    tree, counts = table[0], table[1]
    size = tree.shape[0] - 1
    bits = 0.0
    for symbol in symbols:
        start, i = 0, symbol
        while i > 0:
            start += tree[i]
            i &= i - 1
        bits += np.log2(tree[size] / counts[symbol])
        range_coder.put(state, out, start, counts[symbol], state[1] // np.uint64(tree[size]))
        _count(table, symbol)
    return bits


@compiled
def _decode(state, data, table, symbols):
    tree, counts = table[0], table[1]
    size = tree.shape[0] - 1
    end = np.uint64(data.shape[0] + range_coder.CODE_BYTES)
    for n in range(symbols.shape[0]):
        if state[2] > end:  # damaged, which the caller sees in the state
            return
        unit = state[1] // np.uint64(tree[size])
        target = range_coder.target(state, unit, tree[size])
        symbol, start, step = 0, 0, size >> 1
        while step > 0:
            if start + tree[symbol + step] <= target:
                symbol += step
                start += tree[symbol]
            step >>= 1
        range_coder.take(state, data, start, counts[symbol], unit)
        symbols[n] = symbol
        _count(table, symbol)


def encode_symbols(
    parts: Sequence[tuple[int, NDArray[np.integer]]], alphabets: Sequence[Alphabet]
) -> tuple[bytes, list[float]]:
    """Encode integer arrays one after the other.

    Args:
        parts: (index of its table, symbols of any shape) of each array.
        alphabets: the symbols of each table.

    Returns:
        (the stream, the code length of each part in bits).

    Raises:
        FormatError: a symbol is outside its alphabet.
    """
    tables = [_new_table(alphabet) for alphabet in alphabets]
    state = range_coder.new_encoder()
    out = np.zeros(range_coder.MAX_SYMBOL_BYTES * sum(symbols.size for _, symbols in parts) + 16, np.uint8)
    bits = []
    for index, symbols in parts:
        low, high = alphabets[index].low, alphabets[index].high
        if symbols.size and not low <= symbols.min() <= symbols.max() <= high:
            raise FormatError(f"symbols {symbols.min()} to {symbols.max()}: expected {low} to {high}")
        bits.append(float(_encode(state, out, tables[index], symbols.ravel().astype(np.int64) - low)))
    return out[: range_coder.finish(state, out)].tobytes(), bits


def decode_symbols(
    stream: bytes, parts: Sequence[tuple[int, int]], alphabets: Sequence[Alphabet]
) -> list[NDArray[np.int32]]:
    """Decode a stream of `encode_symbols`.

    Args:
        stream: the stream.
        parts: (index of its table, number of symbols) of each array.
        alphabets: the symbols of each table, as for encoding.

    Returns:
        int32 [n] for each part.

    Raises:
        FormatError: the stream ends before its symbols.
    """
    tables = [_new_table(alphabet) for alphabet in alphabets]
    data = np.frombuffer(stream, np.uint8)
    state = range_coder.new_encoder()
    range_coder.start_decoder(state, data)
    arrays = []
    for index, count in parts:
        symbols = np.empty(count, np.int32)
        _decode(state, data, tables[index], symbols)
        if int(state[2]) > len(stream) + range_coder.CODE_BYTES:
            raise FormatError(
                f"symbol stream of {len(stream)} bytes ends before symbol {count} of an array; the file is damaged"
            )
        arrays.append(symbols + np.int32(alphabets[index].low))
    return arrays


_HALVES = (Alphabet(0, 255), Alphabet(0, 255))


def encode_words(words: NDArray[np.uint16]) -> bytes:
    """Encode 16-bit words (float16 steps, vectors) as a plane of high and a plane of low bytes."""
    return encode_symbols([(0, words >> 8), (1, words & 255)], _HALVES)[0]


def decode_words(stream: bytes, count: int) -> NDArray[np.uint16]:
    """Decode a stream of `encode_words` to uint16 [count]."""
    high, low = decode_symbols(stream, [(0, count), (1, count)], _HALVES)
    return ((high << 8) | low).astype(np.uint16)
