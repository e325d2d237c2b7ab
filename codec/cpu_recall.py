"""`codec.recall` on a processor: compiled loops over rows, with the memories of many lanes in arrays."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from codec import recall
from codec.cpu_kernels import kernel, norm_row
from codec.fixed import SNAP_BITS
from codec.recall import KEY_FRACTION, PATTERN_BITS, REST_BITS, SHAPES, STEPS

_HIDDEN_SCALE, _HIDDEN_LIMIT = float(1 << recall.HIDDEN_FRACTION), float(1 << (SNAP_BITS - 1))
_KEY_SCALE, _KEY_LIMIT = float(1 << KEY_FRACTION), float(recall.KEY_LIMIT)
_SURPRISALS = np.array(recall.SURPRISALS)
_NEWEST, _REST = np.int32(1 << (PATTERN_BITS + REST_BITS - 1)), np.int32((1 << REST_BITS) - 1)
_SECOND = SHAPES["patterns"][0]
_THIRD = _SECOND + SHAPES["rest"][0]
_NEVER = np.int32(-(1 << 31) + 1)


class Memory(NamedTuple):
    """See `codec.recall.Memory`."""

    tables: NDArray[np.int32]  # in levels
    tokens: NDArray[np.int32]  # [lanes, history]
    followers: NDArray[np.int32]
    masks: NDArray[np.int32]
    keys: NDArray[np.int8]  # [lanes, history, dim]
    sums: NDArray[np.float64]  # [lanes, dim]
    places: NDArray[np.int64]  # [lanes]


def new_memory(tables: recall.Recall, lanes: int, dim: int, history: int = recall.HISTORY) -> Memory:
    """An empty memory; the system provides what is used of it."""
    tokens, followers, masks = (np.zeros((lanes, history), np.int32) for _ in range(3))
    keys, sums, places = np.zeros((lanes, history, dim), np.int8), np.zeros((lanes, dim)), np.zeros(lanes, np.int64)
    return Memory(tables.tables * recall.UNIT, tokens, followers, masks, keys, sums, places)


@kernel
def _make_key(hidden, step, sums, count, centred, snapped, key):
    """The key int8 [dim] of the hidden state hidden * step, the `count`th of its document."""
    for k in range(len(hidden)):
        fixed = np.rint(np.float64(hidden[k]) * step * _HIDDEN_SCALE)
        fixed = min(max(fixed, -_HIDDEN_LIMIT), _HIDDEN_LIMIT)
        sums[k] += fixed
        centred[k] = fixed * count - sums[k]
    unit = norm_row(centred, snapped, 1.0)
    for k in range(len(hidden)):
        fixed = np.rint(np.float64(snapped[k]) * unit * _KEY_SCALE)
        key[k] = np.int8(min(max(fixed, -_KEY_LIMIT), _KEY_LIMIT))


@kernel
def _product(a, b):
    total = np.int32(0)
    for k in range(len(a)):
        total += np.int32(a[k]) * np.int32(b[k])
    return total


@kernel
def _measure(token, used, before, tokens, followers, masks, keys, key, agreement, similarity):
    """Fill in the greatest mask and product of keys for each token that has followed one of `used` places."""
    for s in range(used):
        mask = (before >> 1) | (_NEWEST if tokens[s] == token else np.int32(0))
        before, masks[s] = masks[s], mask
        w = followers[s]
        agreement[w] = max(agreement[w], mask)
        similarity[w] = max(similarity[w], _product(keys[s], key))


@kernel
def _raise(tables, followers, one, levels, exp2, agreement, similarity):
    """Add to levels what the tables say, and clear the measures."""
    top = levels.max()
    total = np.int64(0)
    for level in levels:
        total += exp2[min(top - level, len(exp2) - 1)]
    for w in followers:
        mask = agreement[w]
        if mask < 0:
            continue
        weight, column = np.int64(exp2[min(top - levels[w], len(exp2) - 1)]), 0
        while column < len(_SURPRISALS) and (weight << _SURPRISALS[column]) <= total:
            column += 1
        rest, count = mask & _REST, 0
        while rest:
            rest &= rest - 1
            count += 1
        row = min(max(np.int64(similarity[w]) * STEPS // one + 1, 0), STEPS + 1)
        raised = tables[mask >> REST_BITS, column] + tables[_SECOND + count, column] + tables[_THIRD + row, column]
        levels[w] += raised
        agreement[w], similarity[w] = -1, _NEVER


@kernel
def step(memory, lanes, positions, tokens, hidden, steps, levels, exp2):
    """`codec.recall.Memory.step` for rows one after the other: levels int32 [n, V] are changed.

    Args:
        lanes, positions, tokens: int64 [n]; a lane may have several rows.
        hidden, steps: int32 [n, dim] and float64 [n].
        exp2: `codec.tables.exp2_table` of the coder.
    """
    dim, vocabulary, history = hidden.shape[1], levels.shape[1], memory.tokens.shape[1]
    agreement, similarity = np.full(vocabulary, -1, np.int32), np.full(vocabulary, _NEVER, np.int32)
    centred, snapped, key = np.empty(dim), np.empty(dim, np.int32), np.empty(dim, np.int8)
    for i in range(len(tokens)):
        m = lanes[i]
        if positions[i] == 0:
            memory.places[m] = 0
            memory.sums[m] = 0.0
        place = memory.places[m]
        slot, used = place % history, min(place, history)
        if place > 0:
            memory.followers[m, (place - 1) % history] = tokens[i]
        before = memory.masks[m, history - 1] if place > history else np.int32(0)
        _make_key(hidden[i], steps[i], memory.sums[m], float(place + 1), centred, snapped, key)
        _measure(
            tokens[i], used, before, memory.tokens[m], memory.followers[m], memory.masks[m], memory.keys[m], key,
            agreement, similarity,
        )  # fmt: skip
        one = dim << (2 * KEY_FRACTION)
        _raise(memory.tables, memory.followers[m, :used], one, levels[i], exp2, agreement, similarity)
        memory.tokens[m, slot] = tokens[i]
        memory.keys[m, slot] = key
        memory.places[m] = place + 1
