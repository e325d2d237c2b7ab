"""Raise levels by the match model (`codec.exact.recall`) on a processor, in compiled loops over rows."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from codec.backends.cpu.elementwise import norm_row
from codec.compiled import kernel
from codec.exact import recall
from codec.exact.recall import KEY_FRACTION, PATTERN_BITS, REST_BITS, SHAPES, STEPS
from codec.numerics.widths import SNAP_BITS

_HIDDEN_SCALE, _HIDDEN_LIMIT = float(1 << recall.HIDDEN_FRACTION), float(1 << (SNAP_BITS - 1))
_KEY_SCALE, _KEY_LIMIT = float(1 << KEY_FRACTION), float(recall.KEY_LIMIT)
_SURPRISALS = np.array(recall.SURPRISALS)
_NEWEST, _REST = np.int32(1 << (PATTERN_BITS + REST_BITS - 1)), np.int32((1 << REST_BITS) - 1)
_SECOND = SHAPES["patterns"][0]
_THIRD = _SECOND + SHAPES["rest"][0]
NEVER = np.int32(-(1 << 31) + 1)


class Memory(NamedTuple):
    """The match model's memory of decoding slots; see `codec.exact.recall_memory.Memory`."""

    tables: NDArray[np.int32]  # in levels
    tokens: NDArray[np.int32]  # [slots, history]
    followers: NDArray[np.int32]
    masks: NDArray[np.int32]
    keys: NDArray[np.int8]  # [slots, history, dim]
    sums: NDArray[np.float64]  # [slots, dim], sums of a document's hidden states
    places: NDArray[np.int64]  # [slots], the tokens of each document so far


def new_memory(tables: recall.Recall, slots: int, dim: int, history: int = recall.HISTORY) -> Memory:
    """Create an empty memory of `slots` slots. The operating system provides pages only when they are used."""
    tokens, followers, masks = (np.zeros((slots, history), np.int32) for _ in range(3))
    keys, sums, places = np.zeros((slots, history, dim), np.int8), np.zeros((slots, dim)), np.zeros(slots, np.int64)
    return Memory(tables.tables * recall.UNIT, tokens, followers, masks, keys, sums, places)


@kernel
def _make_key(hidden, step, sums, count, key):
    """Fill in `key`, int8 [dim], for the hidden state hidden * step, number `count` of the document."""
    centred, snapped = np.empty(len(hidden)), np.empty(len(hidden), np.int32)
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
    """Compute the dot product of two keys, int32."""
    total = np.int32(0)
    for k in range(len(a)):
        total += np.int32(a[k]) * np.int32(b[k])
    return total


@kernel
def _measure(token, used, before, tokens, followers, masks, keys, key, agreement, similarity):
    """Fill in the greatest mask and product of keys for each token that followed one of `used` positions."""
    for s in range(used):
        mask = (before >> 1) | (_NEWEST if tokens[s] == token else np.int32(0))
        before, masks[s] = masks[s], mask
        w = followers[s]
        agreement[w] = max(agreement[w], mask)
        similarity[w] = max(similarity[w], _product(keys[s], key))


@kernel
def see(memory, slot, position, token, hidden, step, agreement, similarity):
    """Add one more token to a slot's document, and fill in the measures of all tokens that followed earlier positions.

    Args:
        memory: a `Memory`.
        slot: the number of the slot.
        position: the token's position. Position 0 begins a document.
        token: the token.
        hidden: int32 [dim], the snapped last hidden state at the token.
        step: the step of that state.
        agreement: int32 [V], cleared (see `clear`), filled in.
        similarity: int32 [V], cleared, filled in.

    Returns:
        How many entries of `memory.followers` of the slot hold tokens. A token may have several entries.
    """
    history = memory.tokens.shape[1]
    if position == 0:
        memory.places[slot] = 0
        memory.sums[slot] = 0.0
    place = memory.places[slot]
    index, used = place % history, min(place, history)
    if place > 0:
        memory.followers[slot, (place - 1) % history] = token
    before = memory.masks[slot, history - 1] if place > history else np.int32(0)
    key = np.empty(len(hidden), np.int8)
    _make_key(hidden, step, memory.sums[slot], float(place + 1), key)
    _measure(
        token, used, before, memory.tokens[slot], memory.followers[slot], memory.masks[slot], memory.keys[slot], key,
        agreement, similarity,
    )  # fmt: skip
    memory.tokens[slot, index] = token
    memory.keys[slot, index] = key
    memory.places[slot] = place + 1
    return used


@kernel
def clear(agreement, similarity):
    """Reset the measures [V] of all tokens: no token has followed."""
    agreement[:] = -1
    similarity[:] = NEVER


@kernel
def total_weight(levels, top, exp2):
    """Sum the weights (`codec.entropy.frequencies.weights`) of levels [V]; `top` is the highest level."""
    total = np.int64(0)
    for level in levels:
        total += exp2[min(top - level, len(exp2) - 1)]
    return total


@kernel
def column(weight, total):
    """Return the column of the tables for a token with the share weight / total of the probability."""
    at = 0
    while at < len(_SURPRISALS) and (np.int64(weight) << _SURPRISALS[at]) <= total:
        at += 1
    return at


@kernel
def rows(mask, similarity, dim):
    """Return the three rows of `Recall.tables` for a token's measures."""
    rest, count = mask & _REST, 0
    while rest:
        rest &= rest - 1
        count += 1
    steps = np.int64(similarity) * STEPS // (dim << (2 * KEY_FRACTION)) + 1
    return mask >> REST_BITS, _SECOND + count, _THIRD + min(max(steps, 0), STEPS + 1)


@kernel
def step(memory, slots, positions, tokens, hidden, steps, levels, exp2):
    """Run `codec.exact.recall_memory.Memory.step` for rows one after the other, and raise their levels in place.

    Args:
        memory: a `Memory`.
        slots: int64 [n], the slot of each row. A slot may have several rows.
        positions: int64 [n].
        tokens: int64 [n].
        hidden: int32 [n, dim], snapped last hidden states.
        steps: float64 [n], their steps.
        levels: int32 [n, V], changed.
        exp2: `codec.numerics.tables.exp2_table` of the coder.
    """
    agreement, similarity = np.empty(levels.shape[1], np.int32), np.empty(levels.shape[1], np.int32)
    clear(agreement, similarity)
    for i in range(len(tokens)):
        used = see(memory, slots[i], positions[i], tokens[i], hidden[i], steps[i], agreement, similarity)
        top = levels[i].max()
        total = total_weight(levels[i], top, exp2)
        for w in memory.followers[slots[i], :used]:
            if agreement[w] < 0:
                continue
            c = column(exp2[min(top - levels[i, w], len(exp2) - 1)], total)
            for r in rows(agreement[w], similarity[w], hidden.shape[1]):
                levels[i, w] += memory.tables[r, c]
            agreement[w], similarity[w] = -1, NEVER
