"""Predict one decision from contexts, matches and a language model, and learn from the outcome."""

import numpy as np

from codec.cm import match, mixer
from codec.cm.contexts import hash_contexts, take_byte
from codec.cm.slots import HISTORIES, bucket, find, history_index, learn_map, learned, mixed
from codec.cm.state import (
    BITS,
    DEPTH,
    END_MAPS,
    END_SETS,
    FINAL_ROW,
    INPUT_COUNT,
    KIND,
    KNOTS,
    LAST,
    MODEL_MAPS,
    MODELLED,
    PARTIAL,
    PLACE,
    RECORD,
    SETS,
    USED,
)
from codec.cm.tables import STRETCH
from codec.cm.vectors import prefetch
from codec.compiled import compiled

NONE = 1 << 20
"""The value in place of a language model's odds where there is none."""

CONFIDENCE = np.array([0] + [min(64, 20 + 64 * n // (n + 4)) for n in range(1, 256)], np.int32)
"""Weight of odds in 64ths, by the number of decisions that the odds come from."""

_ORDERS = 7  # contexts, from the first on, that tell how much is known
_MOST = 1023  # decisions that maps remember


@compiled
def _inputs_of_slots(s, k, used, node, base):
    """Fill in two inputs for each of the first `used` contexts; return how many lower orders have seen this node."""
    x, slots, hits = s.inputs, s.slots, 0
    for i in range(used):
        at = slots[0, i] + node
        value = np.int64(s.nodes[at])
        slots[1, i], slots[2, i] = at, -1
        x[k], x[k + 1] = 0, 0
        if value != 0:
            m = base + i * HISTORIES + history_index(value)
            slots[2, i] = m
            x[k] = STRETCH[s.maps[m] >> 20]
            x[k + 1] = (np.int64(STRETCH[value >> 20]) * CONFIDENCE[(value >> 8) & 255]) >> 6
            hits += i < _ORDERS
        k += 2
    return hits


@compiled
def _inputs_of_model(s, odds, row):
    """Fill in a language model's odds, and what they have stood for so far in a row of maps; return the next input."""
    if odds == NONE:
        s.registers[MODELLED] = -1
        return 0
    low, rest = mixer.knot(odds)
    at = MODEL_MAPS + row * KNOTS + low
    s.registers[MODELLED] = at + (rest >> 6)
    s.inputs[0] = odds
    s.inputs[1] = STRETCH[mixer.between(s.maps, at, rest) >> 10]
    return 2


@compiled
def predict_bit(s, odds):
    """Return the probability (2^-16) that the next bit of a byte is a one.

    Args:
        s: a stream.
        odds: the language model's, or NONE.
    """
    r, sets = s.registers, s.sets
    bits, partial, used = r[BITS], r[PARTIAL], r[USED]
    depth = min(r[DEPTH], 3)
    k = _inputs_of_model(s, odds, depth * 8 + bits)
    hits = _inputs_of_slots(s, k, used, _node(partial, bits), 0)
    k += 2 * used
    trust = match.predict(s, k)
    k += 4
    if odds == NONE:
        s.inputs[k] = 256
        k += 1
    r[INPUT_COUNT], r[FINAL_ROW] = k, partial
    sets[0] = trust * 8 + bits
    sets[1] = SETS + partial
    sets[2] = 2 * SETS + (r[LAST] & 255 if odds == NONE else mixer.knot(odds)[0] * 4 + depth)
    sets[3] = 3 * SETS + hits * 8 + bits
    sets[4] = 4 * SETS + (((r[PLACE] % r[RECORD]) if r[KIND] else r[LAST] >> 8) & 255)
    return mixer.mix(s)


@compiled
def predict_end(s, used, node, odds):
    """Return the probability (2^-16) that a token ends here, by `used` buckets in `s.slots` and a model's odds."""
    r, sets = s.registers, s.sets
    k = _inputs_of_model(s, odds, 32 + min(r[DEPTH], 7))
    hits = _inputs_of_slots(s, k, used, node, END_MAPS)
    k += 2 * used
    s.inputs[k] = 256
    r[INPUT_COUNT], r[FINAL_ROW] = k + 1, 0
    sets[0] = END_SETS + node
    sets[1] = SETS + END_SETS
    sets[2] = 2 * SETS + END_SETS + mixer.knot(odds)[0]
    sets[3] = 3 * SETS + END_SETS + hits
    sets[4] = 4 * SETS + END_SETS + (r[LAST] & 255)
    return mixer.mix(s)


@compiled
def learn(s, used, bit):
    """Learn from a decision that `used` contexts predicted."""
    for i in range(used):
        at, m = s.slots[1, i], s.slots[2, i]
        s.nodes[at] = np.uint32(learned(np.int64(s.nodes[at]), bit))
        if m >= 0:
            learn_map(s.maps, m, bit, _MOST)
    if s.registers[MODELLED] >= 0:
        learn_map(s.maps, s.registers[MODELLED], bit, _MOST)
    mixer.correct(s, bit)


@compiled
def learn_bit(s, bit):
    """Learn from the bit that `predict_bit` predicted, and move to the next bit."""
    match.learn(s, bit)
    learn(s, s.registers[USED], bit)
    advance(s, bit)


@compiled
def pass_bit(s, bit):
    """Move past a bit that could not have been another one: contexts learn, weights do not."""
    node = _node(s.registers[PARTIAL], s.registers[BITS])
    for i in range(s.registers[USED]):
        at = s.slots[0, i] + node
        s.nodes[at] = np.uint32(learned(np.int64(s.nodes[at]), bit))
    advance(s, bit)


@compiled
def _node(partial, bits):
    """Return the node of a bucket that predicts the next bit."""
    return partial if bits < 4 else (partial & ((1 << (bits - 4)) - 1)) | (1 << (bits - 4))


@compiled
def advance(s, bit):
    """Take a bit; behind a nibble, look up the next buckets of all contexts."""
    r = s.registers
    r[PARTIAL] = r[PARTIAL] << 1 | bit
    r[BITS] += 1
    if r[BITS] == 4:
        for i in range(r[USED]):
            s.slots[0, i] = mixed(s.hashes[i], r[PARTIAL])
            prefetch(s.nodes, bucket(s.nodes, s.slots[0, i]))  # type: ignore[call-arg]
        for i in range(r[USED]):
            s.slots[0, i] = find(s.nodes, s.slots[0, i])
    elif r[BITS] == 8:
        byte = r[PARTIAL] & 255
        s.history[r[PLACE] & (len(s.history) - 1)] = byte
        r[PLACE] += 1
        r[LAST] = (r[LAST] << 8 | byte) & 0xFFFFFFFFFFFFFF
        take_byte(s, byte)
        match.follow(s)
        start_byte(s)


@compiled
def start_byte(s):
    """Look up the buckets of the next byte's contexts; called before the first byte, too."""
    r = s.registers
    r[PARTIAL], r[BITS] = 1, 0
    hash_contexts(s)
    for i in range(r[USED]):
        prefetch(s.nodes, bucket(s.nodes, s.hashes[i]))  # type: ignore[call-arg]
    for i in range(r[USED]):
        s.slots[0, i] = find(s.nodes, s.hashes[i])
