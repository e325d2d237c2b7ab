"""Code tokens of a language model along their bytes, under the model's probabilities and the text's contexts.

The tokens that agree with the bytes so far are an interval of the sorted vocabulary (`codec.cm.vocabulary`). Each byte
takes up to nine decisions, each of which divides the interval. The first one is whether the token ends here, where one
token does and others go on; the others are the byte's bits. The model's probability of a decision is a quotient of
exact sums of the model's frequencies. The odds of the model and of the contexts are mixed. Control tokens have no
bytes: they end before the first byte.

The coding of a token depends on the sums at a few indices, the token's *cuts*, which follow from the vocabulary. An
encoder, which knows the token, needs no other sums: memory does not grow with the vocabulary.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from codec.cm.predictor import learn, learn_bit, pass_bit, predict_bit, predict_end, start_byte
from codec.cm.slots import find, mixed
from codec.cm.state import DEPTH, LENGTH, PLACE, POINTER, Stream, new_stream
from codec.cm.tables import STRETCH_FINE
from codec.cm.vocabulary import Vocabulary
from codec.compiled import compiled
from codec.entropy import range_coder
from codec.entropy.adaptive_bit import code_bit

_END_CONTEXTS = np.array([2, 3, 4, 6, 7, 8, 9])  # of text, those that also predict where a token ends
_END_USED = len(_END_CONTEXTS) + 1
_END_MARK = 7777  # tells their hashes from those of bytes


def new_tokens(size: int) -> Stream:
    """Make a stream for the tokens of about `size` bytes of text."""
    s = new_stream(size, modelled=True)
    start_byte(s)
    return s


def room(v: Vocabulary) -> int:
    """Return the most bytes that a token adds to a code: two for each decision."""
    longest = int(np.diff(v.begins).max())
    return 2 * (9 * (longest + 1) + len(v.tokens).bit_length()) + range_coder.MAX_SYMBOL_BYTES


@compiled
def _share(part, whole):
    """Return a quotient as a probability in units of 2^-16."""
    return min(max((part << 16) // whole, 1), 65535)


@compiled
def _ended(v, low, high, depth):
    """Return where the tokens of `depth` bytes end, which come first in an interval."""
    while low < high and v.begins[low + 1] - v.begins[low] == depth:
        low += 1
    return low


@compiled
def _first_from(v, low, high, depth, edge):
    """Return the first token of an interval whose byte at `depth` is `edge` or more."""
    while low < high:
        middle = (low + high) >> 1
        if v.text[v.begins[middle] + depth] < edge:
            low = middle + 1
        else:
            high = middle
    return low


@compiled
def _end_slots(s):
    """Put the buckets of bytes aside, and look up the buckets of ends."""
    r, mask = s.registers, len(s.history) - 1
    ended = np.int64(s.ends[(r[POINTER] - 1) & mask]) if r[LENGTH] > 0 else 2
    for i in range(_END_USED):
        s.slots[3, i] = s.slots[0, i]
    for i in range(len(_END_CONTEXTS)):
        s.slots[0, i] = find(s.nodes, mixed(s.hashes[_END_CONTEXTS[i]], _END_MARK + (ended if i == 6 else 0)))
    s.slots[0, _END_USED - 1] = find(s.nodes, mixed(mixed(ended, min(r[LENGTH], 16)), _END_MARK))


@compiled
def _code_end(s, coder, code, share, end, decode):
    """Code whether a token ends behind the bytes so far; return the decision."""
    _end_slots(s)
    p = predict_end(s, _END_USED, min(s.registers[DEPTH], 15), np.int64(STRETCH_FINE[share]))
    end = code_bit(coder, code, p, end, decode)
    learn(s, _END_USED, end)
    for i in range(_END_USED):
        s.slots[0, i] = s.slots[3, i]
    return end


@compiled
def _code_byte(s, v, coder, code, sums, rank, low, high, decode):
    """Code the next byte of a token in the interval `low` to `high` of longer tokens; return the new interval."""
    prefix, depth = 0, s.registers[DEPTH]
    for k in range(8):
        edge = prefix | 128 >> k
        first = _first_from(v, low, high, depth, edge)
        bit = 1 if first == low else 0
        if bit or first == high:  # no token of the interval has the other
            pass_bit(s, bit)
        else:
            share = _share(sums[high] - sums[first], sums[high] - sums[low])
            p = predict_bit(s, np.int64(STRETCH_FINE[share]))
            bit = code_bit(coder, code, p, 1 if rank >= first else 0, decode)
            learn_bit(s, bit)
        if bit:
            low, prefix = first, edge
        else:
            high = first
    return low, high


@compiled
def code_token(s, v, coder, code, sums, rank, decode):
    """Code one token; return the token's rank.

    Args:
        s: a stream of `new_tokens`.
        v: the Vocabulary.
        coder: the state of `codec.entropy.range_coder`.
        code: uint8; an encoder needs `room` bytes more.
        sums: int64 [V + 1], cumulative frequencies in the order of `v`, each token's at least 1. An encoder reads the
            sums at the token's `cuts` only.
        rank: the token's rank in `v`; when decoding, any.
        decode: whether to decode.
    """
    r, low, high = s.registers, 0, len(v.tokens)
    r[DEPTH] = 0
    while True:
        same = _ended(v, low, high, r[DEPTH])
        if same == high:
            break
        if same > low:
            share, end = _share(sums[same] - sums[low], sums[high] - sums[low]), 1 if rank < same else 0
            if r[DEPTH]:
                end = _code_end(s, coder, code, share, end, decode)
            else:
                end = code_bit(coder, code, share, end, decode)
            if end:
                high = same
                break
            low = same
        low, high = _code_byte(s, v, coder, code, sums, rank, low, high, decode)
        s.ends[(r[PLACE] - 1) & (len(s.ends) - 1)] = 0
        r[DEPTH] += 1
    if r[DEPTH]:
        s.ends[(r[PLACE] - 1) & (len(s.ends) - 1)] = 1
    while high - low > 1:  # tokens of the same bytes
        middle = (low + high) >> 1
        share = _share(sums[high] - sums[middle], sums[high] - sums[low])
        if code_bit(coder, code, share, 1 if rank >= middle else 0, decode):
            low = middle
        else:
            high = middle
    return np.int64(low)


@compiled
def _cuts_of(v, rank, out):
    """Fill in the cuts of one token in the order in which `code_token` first reads them; returns how many they are."""
    low, high, depth = 0, len(v.tokens), 0
    out[0], out[1], count = low, high, 2
    while True:
        same = _ended(v, low, high, depth)
        if same == high:
            break
        if same > low:
            out[count] = same
            count += 1
            if rank < same:
                high = same
                break
            low = same
        prefix = 0
        for k in range(8):
            edge = prefix | 128 >> k
            first = _first_from(v, low, high, depth, edge)
            if first > low and first < high:
                out[count] = first
                count += 1
            if rank >= first:
                low, prefix = first, edge
            else:
                high = first
        depth += 1
    while high - low > 1:
        middle = (low + high) >> 1
        out[count] = middle
        count += 1
        if rank >= middle:
            low = middle
        else:
            high = middle
    return count


@compiled
def _fill_cuts(v, begins, out):
    """Fill in the cuts of all tokens one behind the other, and where each one's begin; returns how many they are."""
    count = 0
    for rank in range(len(v.tokens)):
        begins[rank] = count
        count += _cuts_of(v, rank, out[count:])
    begins[len(v.tokens)] = count
    return count


class Cuts(NamedTuple):
    """The indices of the sums that the coding of each token depends on."""

    begins: NDArray[np.int64]  # [V + 1]: where a token's begin, by rank
    ranks: NDArray[np.int32]


def cuts(v: Vocabulary) -> Cuts:
    """List the indices of sums that `code_token` reads of each token; 32 of 49,152 in the mean.

    >>> from codec.cm.vocabulary import sort
    >>> cuts(sort([b"a", b"b", b"ab"])).ranks.tolist()
    [0, 3, 2, 1, 0, 3, 2, 1, 0, 3, 2]
    """
    decisions = 9 * (np.diff(v.begins).astype(np.int64) + 1) + 2 + len(v.tokens).bit_length()
    begins, found = np.zeros(len(v.tokens) + 1, np.int64), np.zeros(int(decisions.sum()), np.int32)
    count = _fill_cuts(v, begins, found)
    return Cuts(begins, found[:count].copy())


@compiled
def encode_tokens(s, v, coder, code, sums, ranks):
    """Encode tokens by their ranks int64 [T] with sums int64 [T, V + 1]; see `code_token`."""
    for n in range(len(ranks)):
        code_token(s, v, coder, code, sums[n], ranks[n], False)


@compiled
def decode_token(s, v, coder, code, sums):
    """Decode and return the rank of the next token; see `code_token`."""
    return code_token(s, v, coder, code, sums, 0, True)
