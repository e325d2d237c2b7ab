"""Define the state of a stream: arrays of integers, which compiled functions change in place.

A stream of n bytes takes about 2 n + 2^14 buckets of 64 bytes, at most 2^BUCKET_BITS (64 MiB); a megabyte of weights;
up to 17 MB of adaptive probability maps; and up to 4 MB of history.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from codec.cm.slots import HISTORIES, WIDTH
from codec.cm.tables import LIMIT, SQUASH

CONTEXTS = 24
"""The most contexts of a kind of data."""

INPUTS = 48
"""The most inputs: two for each context and for each match, a constant, and two of the language model."""

SELECTORS, SETS = 5, 1024
"""Selectors, and the sets of weights of each; a decision uses one set of each selector."""

END_SETS = 768
"""The first set of the weights for ends of tokens."""

BUCKET_BITS, HISTORY_BITS, HEAD_BITS, ROW_BITS = 20, 22, 18, 17
"""Binary logarithms of the most buckets, bytes of history, entries of the match model's tables, and adaptive
probability maps."""

KNOTS = 33
"""Knots of an adaptive probability map: odds from -8 to 8 nats, half a nat apart."""

END_MAPS = CONTEXTS * HISTORIES
"""The first map of histories for ends of tokens; the maps for bytes begin at 0."""

MATCH_MAPS = 2 * CONTEXTS * HISTORIES
MATCH_LENGTHS = 32
MODEL_MAPS = MATCH_MAPS + 2 * MATCH_LENGTHS
MODEL_ROWS = 40  # by place in a byte and depth in a token, and of ends by depth

PLACE, LAST, WORD, WORD1, WORD2, MARK, LINE, LINE1, INDENT, SHAPE = range(10)
"""Registers of text: bytes so far; the last seven bytes; hashes of the current word and of the words before; the last
other character; where this line and the line before begin; the spaces that this line begins with; and the classes of
the last characters, where a run counts once."""

KIND, RECORD, USED, PARTIAL, BITS, DEPTH, DECISIONS = range(10, 17)
"""Registers: text or records; the length of records; contexts; the bits of the current byte behind a one; their number;
bytes of the current token; and decisions so far."""

LENGTH, POINTER, EXPECTED = 17, 19, 21
"""Registers of two matches each: length, place, and the byte that is expected."""

INPUT_COUNT, FINAL_ROW, MODELLED, MATCHED, REFINED = 23, 24, 25, 26, 28
"""Registers that carry a prediction to what is learned from the prediction; two each of matches and refinements."""

REGISTERS = 30

_FIRST_WEIGHT = 12000
_MODEL_WEIGHT, _BESIDE_WEIGHT = 33000, 800  # what weights become on 46 pages of web text coded one after the other
_MAP_COUNT, _MODEL_COUNT, _ROW_COUNT = 4, 255, 60  # decisions that first probabilities count as


class Stream(NamedTuple):
    """The arrays that the decisions of a stream adapt."""

    nodes: NDArray[np.uint32]  # `codec.cm.slots`
    maps: NDArray[np.uint32]  # adaptive probabilities: 22 bits, and 10 of a count
    weights: NDArray[np.int32]  # [SELECTORS * SETS * INPUTS], in units of 2^-16
    final: NDArray[np.int32]  # [256, SELECTORS], likewise
    refined: NDArray[np.uint32]  # [rows * 2 * KNOTS], as `maps`: by the byte before, and by two and the expected one
    registers: NDArray[np.int64]
    hashes: NDArray[np.int64]  # [CONTEXTS]
    slots: NDArray[np.int64]  # [4, CONTEXTS]: buckets, nodes, maps, and buckets put aside
    inputs: NDArray[np.int32]  # [INPUTS]: odds
    sets: NDArray[np.int64]  # [SELECTORS]
    sums: NDArray[np.int64]  # [SELECTORS + 1]
    history: NDArray[np.uint8]  # the last bytes, a power of two
    ends: NDArray[np.uint8]  # beside `history`: whether a token ended behind this byte
    heads: NDArray[np.int32]  # [2, a power of two]: where the last bytes were before, by hash
    following: NDArray[np.uint32]  # [256 + 65,536]: the bytes that last followed one and two bytes; of records


def new_stream(size: int, record: int = 0, modelled: bool = False) -> Stream:
    """Make a stream that has seen nothing.

    Args:
        size: bytes that the stream will have, or more; decides on memory.
        record: bytes of a record; 0 for text.
        modelled: whether a language model will predict tokens.
    """
    bits = size.bit_length()
    side = min(max(bits, 8), HISTORY_BITS)
    rows = min(max(bits - 4, 9), ROW_BITS)
    knots = SQUASH[((np.arange(KNOTS) - KNOTS // 2) * 128).clip(-2047, 2047) + LIMIT].astype(np.int64) << 16
    registers = np.zeros(REGISTERS, np.int64)
    registers[KIND], registers[RECORD], registers[PARTIAL] = record > 0, max(record, 1), 1
    return Stream(
        nodes=np.zeros(WIDTH << min(max(bits + 1, 14), BUCKET_BITS), np.uint32),
        maps=_first_maps(knots),
        weights=_first_weights(modelled),
        final=np.full((256, SELECTORS), (1 << 16) // SELECTORS, np.int32),
        refined=np.tile((knots | _ROW_COUNT).astype(np.uint32), 1 << rows),
        registers=registers,
        hashes=np.zeros(CONTEXTS, np.int64),
        slots=np.zeros((4, CONTEXTS), np.int64),
        inputs=np.zeros(INPUTS, np.int32),
        sets=np.zeros(SELECTORS, np.int64),
        sums=np.zeros(SELECTORS + 1, np.int64),
        history=np.zeros(1 << side, np.uint8),
        ends=np.zeros(1 << side, np.uint8),
        heads=np.zeros((2, 1 << min(side, HEAD_BITS)), np.int32),
        following=np.zeros(256 + 65536 if record else 1, np.uint32),
    )


def copy(stream: Stream) -> Stream:
    """Copy a stream, so that both continue from the same state."""
    return Stream._make(part.copy() for part in stream)


def _first_maps(knots: NDArray[np.int64]) -> NDArray[np.uint32]:
    """Return the first probabilities: of histories by their bits, newer bits weighing more; of matches by length."""
    histories = np.array([_guess(min(k, 128 + (k & 127))) for k in range(HISTORIES)], np.int64) << 10 | _MAP_COUNT
    matches = ((1 << 22) - (1 << 22) // (np.arange(MATCH_LENGTHS) + 3)) << 10 | _MAP_COUNT
    parts = [np.tile(histories, 2 * CONTEXTS), np.tile(matches, 2), np.tile(knots | _MODEL_COUNT, MODEL_ROWS)]
    return np.concatenate(parts).astype(np.uint32)


def _guess(history: int) -> int:
    """Return the probability of a one, in units of 2^-22, behind a history of up to seven decisions."""
    counts = [102, 102]  # in units of 1/256: 0.4 each
    for bit in bin(history)[3:]:
        counts[int(bit)] += 256
        if counts[1 - int(bit)] > 256:
            counts[1 - int(bit)] //= 2
    return (counts[1] << 22) // sum(counts)


def _first_weights(modelled: bool) -> NDArray[np.int32]:
    """Return equal weights, flat; with a language model, nearly all weight is given to the model's odds."""
    weights = np.full((SELECTORS, SETS, INPUTS), 0 if modelled else _FIRST_WEIGHT, np.int32)
    if modelled:
        weights[:, :, 1::2] = _BESIDE_WEIGHT
        weights[:, :, :2] = _MODEL_WEIGHT
    return weights.reshape(-1)
