"""How likely each edit of a document is: probabilities that begin with what was seen in text, and adapt.

Whether a space was something else is a decision under many mixed contexts (`codec.edits.contexts`,
`codec.entropy.mixing`), each
twice: as it was in the training text, and as it has become in this document. All other decisions have one slot each.
"""

import base64
import unicodedata
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from codec.edits.contexts import FINAL_SETS, SELECTORS, SIZES, Array
from codec.edits.priors import PRIORS
from codec.entropy import mixing
from codec.entropy.adaptive_bit import PRECISION, SHARE_BITS, code_adaptive, code_bit, learn, share
from codec.entropy.mixing import LIMIT, WEIGHT_ONE, Mixer, Tables
from codec.zstd import unshrink

BREAKS = (b"\n\n\n", b"\r\n", b" \n", b"\n ", b"\n\n", b"\n", b"  ", b"\t")
"""What a space often was; one that another begins with comes after it."""

CHARACTERS = "…™․ſﬁﬀﬂ²³¹½¼¾µ´¨˜˚‴″，：（）？！º₂№℃℉"
"""Characters that text has and NFKC replaces, each always by the same (Unicode's stability policy)."""

PHRASES = tuple((unicodedata.normalize("NFKC", c).encode(), c.encode()) for c in CHARACTERS)
"""(canonical, original) of each."""

LENGTH_BITS = 32
_HISTORIES, _SIDES, _PLACES = 4, 3, 9
_KINDS = len(BREAKS) + 1  # of edits at a space, the last for all others
CONTEXTS = int(SIZES.sum())
PHRASE = CONTEXTS  # where slots of single decisions begin: is it this phrase
KIND = PHRASE + len(PHRASES) * _HISTORIES * _SIDES  # is it this break
OTHER = KIND + (_KINDS + 1) * _KINDS  # is there any other edit
DELETE, INSERT = OTHER + _PLACES, OTHER + _PLACES + 2 * LENGTH_BITS  # lengths: unary, then bits
BYTES = INSERT + 2 * LENGTH_BITS  # trees of the first byte and of others
SLOTS = BYTES + 2 * 256

_INPUTS = 2 * len(SIZES) + 1
_SLOT_UNIT, _WEIGHT_UNIT = 80, 1 << 11  # of priors: stretched probabilities, and weights
_CERTAINTY = 20  # decisions that a prior counts for
_RATE, _MOST = 2, 255


class EditModel(NamedTuple):
    """What a document's edits adapt, and what they began with."""

    tables: Tables
    prior: NDArray[np.int16]  # [CONTEXTS]: stretched probabilities of the training text
    probabilities: NDArray[np.int32]  # [SLOTS], in units of 2^-22
    counts: NDArray[np.int16]  # [SLOTS]
    mixer: Mixer
    histories: Array  # [phrases]: 0 before the first chance, then 1 declined, 2 taken, 3 taken twice
    begins: Array  # of each context's slots
    sets: Array  # first set of weights of each selector
    rate: int  # of the weights
    most: int  # decisions that a slot remembers


@lru_cache
def _priors() -> tuple[Array, Array, Array]:
    """Stretched probabilities [SLOTS], weights [sets, inputs] and final weights, as `trainer.fit.edit_priors` made
    them.
    """
    flat = np.frombuffer(unshrink(base64.b85decode("".join(PRIORS.split())), 1 << 20, "priors of edits"), np.int8)
    slots, weights, final = np.split(flat.astype(np.int64), np.cumsum([SLOTS, int(SELECTORS.sum()) * _INPUTS]))
    weights, final = weights * _WEIGHT_UNIT, final * _WEIGHT_UNIT
    return slots * _SLOT_UNIT, weights.reshape(-1, _INPUTS), final.reshape(FINAL_SETS, -1)


def quantized(stretched: Array, weights: Array, final: Array) -> bytes:
    """Priors as they ship: the bytes from which `new_model` has them again."""
    most = LIMIT // _SLOT_UNIT * _SLOT_UNIT
    parts = [stretched.clip(-most, most) / _SLOT_UNIT, weights / _WEIGHT_UNIT, final / _WEIGHT_UNIT]
    return b"".join(np.rint(part).clip(-127, 127).astype(np.int8).tobytes() for part in parts)


def make_model(
    stretched: Array, mixer: Mixer, certainty: int = _CERTAINTY, rate: int = _RATE, most: int = _MOST
) -> EditModel:
    """A model that begins with these priors; the mixer is not copied."""
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


def new_model() -> EditModel:
    """The model at a document's beginning."""
    stretched, weights, final = _priors()
    return make_model(stretched, Mixer(weights.copy(), final.copy()))


def untrained() -> tuple[Array, Mixer]:
    """Priors that know nothing: a break at every 32nd space, equal weights."""
    weights = np.full((int(SELECTORS.sum()), _INPUTS), WEIGHT_ONE // 8, np.int64)
    weights[:, -1] = 0
    final = np.full((FINAL_SETS, len(SELECTORS)), WEIGHT_ONE // len(SELECTORS))
    stretched = np.zeros(SLOTS, np.int64)
    stretched[:CONTEXTS] = -880  # ln(1 / 31)
    stretched[PHRASE:KIND] = -1800
    stretched[OTHER:DELETE] = -2600
    return stretched, Mixer(weights, final)


@njit(cache=True)
def decide(state, stream, model, slot, bit, decode):
    """Code one bit under one slot; returns it."""
    return code_adaptive(state, stream, model.probabilities, model.counts, slot, bit, model.most, decode)


@njit(cache=True)
def decide_space(state, stream, model, scratch, bit, decode):
    """Code whether the space that `scratch` has the contexts of was something else; returns it."""
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


@njit(cache=True)
def new_scratch():
    """Contexts, sets of weights, inputs and sums of one decision at a space."""
    return (
        np.empty(len(SIZES), np.int64),
        np.empty(len(SELECTORS), np.int64),
        np.empty(_INPUTS, np.int64),
        np.empty(len(SELECTORS) + 1, np.int64),
    )


@njit(cache=True)
def phrase_slot(model, phrase, before):
    """The slot that decides whether a phrase is here, behind the byte `before`."""
    side = 0 if 97 <= before <= 122 else 1 if before == 32 else 2
    return PHRASE + (phrase * _HISTORIES + model.histories[phrase]) * _SIDES + side


@njit(cache=True)
def note_phrase(model, phrase, taken):
    """Count in whether a phrase that could be somewhere was there."""
    model.histories[phrase] = (3 if model.histories[phrase] >= 2 else 2) if taken else 1


@njit(cache=True)
def kind_slot(kind, before):
    """The slot that decides whether an edit at a space is of a kind, where the last was of kind `before` (-1: none)."""
    return KIND + (before + 1) * _KINDS + kind


@njit(cache=True)
def other_slot(others, byte, at_end):
    """The slot that decides on an edit elsewhere, after `others` of them."""
    return OTHER + min(others, 5) // 2 * 3 + (2 if at_end else 1 if byte >= 128 else 0)
