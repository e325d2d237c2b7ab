"""The probabilities of a document's edits: they begin with those of the training text and adapt.

Whether a space was something else is a decision under many mixed contexts (`codec.edits.contexts`,
`codec.entropy.mixing`). Each context gives two probabilities: that of the training text, and that of this document so
far. Every other decision has one slot.
"""

import base64
import unicodedata
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from codec.compiled import compiled, making
from codec.edits.contexts import FINAL_SETS, SELECTORS, SIZES, Array
from codec.edits.priors import PRIORS
from codec.entropy import mixing
from codec.entropy.adaptive_bit import PRECISION, SHARE_BITS, code_adaptive, code_bit, learn, share
from codec.entropy.mixing import LIMIT, WEIGHT_ONE, Mixer, Tables
from codec.zstd import unshrink

BREAKS = (b"\n\n\n", b"\r\n", b" \n", b"\n ", b"\n\n", b"\n", b"  ", b"\t")
"""Frequent originals of a space. A break that is the beginning of another comes after the other."""

CHARACTERS = "…™․ſﬁﬀﬂ²³¹½¼¾µ´¨˜˚‴″，：（）？！º₂№℃℉"
"""Characters of real text that NFKC replaces, each always by the same text (Unicode's stability policy)."""

PHRASES = tuple((unicodedata.normalize("NFKC", c).encode(), c.encode()) for c in CHARACTERS)
"""(canonical, original) of each character."""

LENGTH_BITS = 32
_HISTORIES, _SIDES, _PLACES = 4, 3, 9
_KINDS = len(BREAKS) + 1  # kinds of edits at a space, the last for all that are no break
CONTEXTS = int(SIZES.sum())
PHRASE = CONTEXTS  # first slot of the decisions: is this phrase here
KIND = PHRASE + len(PHRASES) * _HISTORIES * _SIDES  # is the edit this break
OTHER = KIND + (_KINDS + 1) * _KINDS  # is any other edit here
DELETE, INSERT = OTHER + _PLACES, OTHER + _PLACES + 2 * LENGTH_BITS  # lengths: unary, then bits
BYTES = INSERT + 2 * LENGTH_BITS  # trees of the first inserted byte and of the others
SLOTS = BYTES + 2 * 256

_INPUTS = 2 * len(SIZES) + 1
_SLOT_UNIT, _WEIGHT_UNIT = 80, 1 << 11  # units of priors: stretched probabilities, and weights
_CERTAINTY = 20  # decisions that a prior counts for
_RATE, _MOST = 2, 255


class EditModel(NamedTuple):
    """The probabilities that a document's edits adapt, and those of the training text."""

    tables: Tables
    prior: NDArray[np.int16]  # [CONTEXTS]: stretched probabilities of the training text
    probabilities: NDArray[np.int32]  # [SLOTS], in units of 2^-22
    counts: NDArray[np.int16]  # [SLOTS]
    mixer: Mixer
    histories: Array  # [phrases]: 0 before the first chance, then 1 not taken, 2 taken, 3 taken twice
    begins: Array  # first slot of each context
    sets: Array  # first set of weights of each selector
    rate: int  # at which the weights move
    most: int  # decisions that a slot remembers


def _priors() -> tuple[Array, Array, Array]:
    """Return stretched probabilities [SLOTS], weights [sets, inputs] and final weights of `codec.edits.priors`."""
    flat = np.frombuffer(unshrink(base64.b85decode("".join(PRIORS.split())), 1 << 20, "priors of edits"), np.int8)
    slots, weights, final = np.split(flat.astype(np.int64), np.cumsum([SLOTS, int(SELECTORS.sum()) * _INPUTS]))
    weights, final = weights * _WEIGHT_UNIT, final * _WEIGHT_UNIT
    return slots * _SLOT_UNIT, weights.reshape(-1, _INPUTS), final.reshape(FINAL_SETS, -1)


def quantized(stretched: Array, weights: Array, final: Array) -> bytes:
    """Return priors as the bytes from which `new_model` restores them."""
    most = LIMIT // _SLOT_UNIT * _SLOT_UNIT
    parts = [stretched.clip(-most, most) / _SLOT_UNIT, weights / _WEIGHT_UNIT, final / _WEIGHT_UNIT]
    return b"".join(np.rint(part).clip(-127, 127).astype(np.int8).tobytes() for part in parts)


def make_model(
    stretched: Array, mixer: Mixer, certainty: int = _CERTAINTY, rate: int = _RATE, most: int = _MOST
) -> EditModel:
    """Make a model that begins with these priors; the mixer is not copied."""
    tables = mixing.tables()
    probabilities = tables.squash[stretched + LIMIT] << (PRECISION - SHARE_BITS)
    return EditModel(
        tables=tables,
        prior=stretched[:CONTEXTS].astype(np.int16),
        probabilities=probabilities.astype(np.int32),
        counts=np.full(SLOTS, certainty, np.int16),
        mixer=mixer,
        histories=np.zeros(len(PHRASES), np.int64),
        begins=np.cumsum(SIZES) - SIZES,
        sets=np.cumsum(SELECTORS) - SELECTORS,
        rate=rate,
        most=most,
    )


@lru_cache
def _first_model() -> EditModel:
    """Make the model that `new_model` copies, whose arrays must not change."""
    stretched, weights, final = _priors()
    return make_model(stretched, Mixer(weights, final))


def new_model() -> EditModel:
    """Make the model for the beginning of a document."""
    first = _first_model()
    return first._replace(
        probabilities=first.probabilities.copy(),
        counts=first.counts.copy(),
        mixer=Mixer(first.mixer.weights.copy(), first.mixer.final.copy()),
        histories=first.histories.copy(),
    )


def untrained() -> tuple[Array, Mixer]:
    """Return priors without training: a break at every 32nd space, equal weights."""
    weights = np.full((int(SELECTORS.sum()), _INPUTS), WEIGHT_ONE // 8, np.int64)
    weights[:, -1] = 0
    final = np.full((FINAL_SETS, len(SELECTORS)), WEIGHT_ONE // len(SELECTORS))
    stretched = np.zeros(SLOTS, np.int64)
    stretched[:CONTEXTS] = -880  # ln(1 / 31)
    stretched[PHRASE:KIND] = -1800
    stretched[OTHER:DELETE] = -2600
    return stretched, Mixer(weights, final)


@compiled
def decide(state, stream, model, slot, bit, decode):
    """Code one bit under one slot; return the bit."""
    return code_adaptive(state, stream, model.probabilities, model.counts, slot, bit, model.most, decode)


@compiled
def decide_space(state, stream, model, scratch, bit, decode):
    """Code whether a space was something else, under the contexts in `scratch`; return the bit."""
    contexts, sets, inputs, sums = scratch
    width, final = len(contexts), sets[0]
    for j in range(width):
        contexts[j] += model.begins[j]
        inputs[j] = model.tables.stretch[share(model.probabilities[contexts[j]])]
        inputs[width + j] = model.prior[contexts[j]]
    inputs[2 * width] = 256
    for j in range(len(sets)):
        sets[j] += model.sets[j]
    bit = code_bit(state, stream, mixing.mix(model.mixer, model.tables, inputs, sets, final, sums), bit, decode)
    mixing.correct(model.mixer, model.tables, inputs, sets, final, sums, bit, model.rate)
    for slot in contexts:
        learn(model.probabilities, model.counts, slot, bit, model.most)
    return bit


@making
def new_scratch():
    """Return arrays for one decision at a space: contexts, sets of weights, inputs and sums."""
    return (
        np.empty(len(SIZES), np.int64),
        np.empty(len(SELECTORS), np.int64),
        np.empty(_INPUTS, np.int64),
        np.empty(len(SELECTORS) + 1, np.int64),
    )


@compiled
def phrase_slot(model, phrase, before):
    """Return the slot of the decision whether a phrase is here, behind the byte `before`."""
    side = 0 if 97 <= before <= 122 else 1 if before == 32 else 2
    return PHRASE + (phrase * _HISTORIES + model.histories[phrase]) * _SIDES + side


@compiled
def note_phrase(model, phrase, taken):
    """Update a phrase's history with whether the phrase was where it could be."""
    model.histories[phrase] = (3 if model.histories[phrase] >= 2 else 2) if taken else 1


@compiled
def kind_slot(kind, before):
    """Return the slot of the decision whether an edit at a space is of a kind.

    The last edit at a space was of kind `before`; -1: there was none.
    """
    return KIND + (before + 1) * _KINDS + kind


@compiled
def other_slot(others, byte, at_end):
    """Return the slot of the decision on an edit elsewhere, after `others` such edits."""
    return OTHER + min(others, 5) // 2 * 3 + (2 if at_end else 1 if byte >= 128 else 0)
