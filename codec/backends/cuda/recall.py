"""Measure matches of the match model (`codec.exact.recall`) on a GPU, for many tokens of many documents at once.

Tokens and keys of a document are in rings: position p is at index p % size. A ring has room for the positions to look
back at, for the new tokens of a call, and for the tokens that the oldest mask reaches back to. A call can therefore
first add all its tokens, and then compare each token with the positions before. Masks and followers are computed from
the tokens. Tensor cores multiply keys. `codec.backends.cuda.kernels.head` raises levels by the measures.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from codec.backends.cuda.kernels.elementwise import (
    launch,
    magnitude,
    reciprocal_sqrt,
    round_even,
    snap_fixed,
    snap_scales,
)
from codec.backends.cuda.kernels.matmul import padded
from codec.devices import send
from codec.exact import recall
from codec.exact.backend import Integers
from codec.exact.recall import HISTORY, KEY_FRACTION, PATTERN_BITS, REST_BITS, Recall
from codec.numerics.widths import NORM_EPSILON

NEVER = -(1 << 31) + 1
"""The similarity of a token that followed no earlier position."""

_MASK_BITS = tl.constexpr(PATTERN_BITS + REST_BITS)
_HIDDEN_SCALE = tl.constexpr(float(1 << recall.HIDDEN_FRACTION))
_KEY_SCALE = tl.constexpr(float(1 << KEY_FRACTION))
_KEY_LIMIT = tl.constexpr(float(recall.KEY_LIMIT))
_EPSILON = tl.constexpr(NORM_EPSILON)

_INPUTS = 64  # entries of keys that a tile multiplies at once
_KEYS = 64  # earlier positions of a tile
_SPLITS = 8  # programs that share the positions that a tile of tokens looks back at


class Measures(NamedTuple):
    """The measures of each token of the vocabulary, for rows of levels."""

    agreement: Tensor  # int32 [rows, V], -1 for tokens that followed no earlier position
    similarity: Tensor  # int32 [rows, V], NEVER for such tokens
    entries: Tensor  # int32 [rows, columns], `Recall.tables` in levels
    one: int  # the product of two keys whose cosine is 1


class Batch(NamedTuple):
    """Runs of consecutive tokens of documents, one run a document; int64 [runs] each."""

    slots: Tensor  # the documents' slots in the memory
    positions: Tensor  # positions of the first tokens; position 0 begins a document
    counts: Tensor  # how many tokens each run has
    firsts: Tensor  # rows of the first tokens among the rows that the model has run
    begins: Tensor  # rows of the first tokens among the rows to measure

    @classmethod
    def of(
        cls, inputs: Sequence[Integers], targets: Sequence[Integers], starts: Integers, begin: int, device: torch.device
    ) -> "Batch":
        """List the scored tokens of inputs, one input a document.

        Args:
            inputs: int64 [T] each.
            targets: int64 [t] each: the last t tokens of each input are scored.
            starts: int64 [inputs], the row of each input's first token.
            begin: the position of each input's first token.
            device: the GPU.
        """
        runs = np.arange(len(inputs))
        counts = np.array([len(after) for after in targets])
        firsts = np.array([len(window) for window in inputs]) - counts
        columns = (runs, begin + firsts, counts, starts + firsts, np.cumsum(counts) - counts)
        return cls(*send(np.stack(columns), device))


@triton.jit
def _remember_kernel(
    slots, positions, counts, firsts, new_tokens, operand, steps, inverse, tokens, keys, sums, places, capacity, limb,
    inputs, dim, width, BLOCK: tl.constexpr,
):  # fmt: skip
    """Add one run of tokens to the memory, position by position.

    new_tokens: int64 [N]. operand: int8 [2, N, inputs], hidden states, with steps float64 [N]. inverse: float64 [1],
    1 / dim. tokens: int32 [slots, capacity]. keys: int8 [slots, capacity, width]. sums: float64 [slots, dim], of hidden
    states. places: int64 [slots].
    """
    run = tl.program_id(0)
    slot, row, count = tl.load(slots + run), tl.load(firsts + run), tl.load(counts + run)
    at = tl.arange(0, BLOCK)
    inside = at < dim
    begins = (tl.load(positions + run) == 0) & (count > 0)
    place = tl.where(begins, 0, tl.load(places + slot))
    total = tl.load(sums + slot * dim + at, mask=inside, other=0.0)
    total = tl.where(begins, 0.0, total)
    for k in range(0, count):
        here = operand + (row + k) * inputs + at
        low = tl.load(here, mask=inside, other=0).to(tl.int32)
        high = tl.load(here + limb, mask=inside, other=0).to(tl.int32)
        hidden = (low + high * 256).to(tl.float64) * tl.load(steps + row + k)
        fixed = snap_fixed(hidden, _HIDDEN_SCALE)
        total += fixed
        centred = fixed * (place + k + 1).to(tl.float64) - total
        scale, step = snap_scales(tl.max(magnitude(centred)))
        snapped = round_even(centred * scale)
        mean = tl.sum(snapped * snapped) * step * step * tl.load(inverse) + _EPSILON
        unit = snapped * (step * reciprocal_sqrt(mean))
        key = tl.minimum(tl.maximum(snap_fixed(unit, _KEY_SCALE), -_KEY_LIMIT), _KEY_LIMIT)
        entry = slot * capacity + (place + k) % capacity
        tl.store(keys + entry * width + at, key.to(tl.int8), mask=inside)
        tl.store(tokens + entry, tl.load(new_tokens + row + k).to(tl.int32))
    tl.store(sums + slot * dim + at, total, mask=inside)
    tl.store(places + slot, place + count)


@triton.jit(do_not_specialize=["at", "limit"])  # any number of rows, by one compiled kernel
def _measure_kernel(
    slots, counts, begins, tokens, keys, places, agreement, similarity, at, limit, capacity, history, width,
    vocabulary, QUERIES: tl.constexpr, KEYS: tl.constexpr, INPUTS: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    """Compare a tile of a run's tokens with a share of the positions before, and keep the greatest measures.

    Only rows `at` to at + limit are measured, as rows 0 to `limit` of agreement and similarity, int32 [limit,
    vocabulary].
    """
    run, tile, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    slot, count, row = tl.load(slots + run), tl.load(counts + run), tl.load(begins + run) - at
    first = tl.maximum(tile * QUERIES, -row)
    last = tl.minimum(tl.minimum((tile + 1) * QUERIES, count), limit - row)  # exclusive
    start = tl.load(places + slot) - count
    query = tile * QUERIES + tl.arange(0, QUERIES)
    valid = (query >= first) & (query < last)
    here = start + query
    rows = (row + query) * vocabulary
    tokens += slot * capacity
    keys += slot * capacity * width
    d = tl.arange(0, INPUTS)
    query_keys = keys + (here % capacity)[:, None] * width + d[None, :]
    oldest = tl.maximum(start + first - history, 0)
    end = tl.where(first < last, start + last - 1, 0)
    for begin in range(oldest + split * KEYS, end, SPLITS * KEYS):
        there = begin + tl.arange(0, KEYS)
        known = there < end
        known_keys = keys + (there % capacity)[None, :] * width + d[:, None]
        product = tl.zeros((QUERIES, KEYS), tl.int32)
        for i in range(0, width, INPUTS):
            a = tl.load(query_keys + i, mask=valid[:, None], other=0)
            b = tl.load(known_keys + i, mask=known[None, :], other=0)
            product = tl.dot(a, b, product, out_dtype=tl.int32)
        mask = tl.zeros((QUERIES, KEYS), tl.int32)
        for j in tl.range(0, _MASK_BITS, num_stages=1):
            ours = tl.load(tokens + (here - j) % capacity, mask=valid & (here >= j), other=-1)
            theirs = tl.load(tokens + (there - j) % capacity, mask=known & (there >= j), other=-2)
            mask = (mask << 1) | (ours[:, None] == theirs[None, :]).to(tl.int32)
        follower = tl.load(tokens + (there + 1) % capacity, mask=known, other=0)
        seen = (there[None, :] < here[:, None]) & (there[None, :] >= here[:, None] - history) & valid[:, None]
        entry = rows[:, None] + follower[None, :]
        tl.atomic_max(agreement + entry, mask, mask=seen, sem="relaxed")
        tl.atomic_max(similarity + entry, product, mask=seen, sem="relaxed")


class Memory:
    """The match model's memory of documents; see `codec.exact.recall_memory.Memory`.

    Args:
        tables: the match model's tables.
        slots: how many documents there are.
        dim: the width of hidden states.
        vocabulary: how many tokens there are.
        fresh: tokens that a call adds to a document, at most.
        rows: rows of levels that are measured at once.
        device: the GPU.
        tokens: tokens of the longest document.
        history: positions to look back at.
    """

    def __init__(
        self, tables: Recall, slots: int, dim: int, vocabulary: int, fresh: int, rows: int, device: torch.device,
        tokens: int = 1 << 62, history: int = HISTORY,
    ):  # fmt: skip
        self._dim, self._vocabulary, self._history = dim, vocabulary, history
        capacity, width = min(tokens, _capacity(history, fresh)), padded(dim, _INPUTS)
        self.tokens = torch.zeros(slots, capacity, dtype=torch.int32, device=device)
        self._keys = torch.zeros(slots, capacity, width, dtype=torch.int8, device=device)
        self._sums = torch.zeros(slots, dim, dtype=torch.float64, device=device)
        self.places = torch.zeros(slots, dtype=torch.int64, device=device)
        self._inverse = torch.full((1,), 1.0 / dim, dtype=torch.float64, device=device)
        self._measures = Measures(
            torch.full((rows, vocabulary), -1, dtype=torch.int32, device=device),
            torch.full((rows, vocabulary), NEVER, dtype=torch.int32, device=device),
            torch.from_numpy(tables.tables * recall.UNIT).to(device),
            dim << (2 * KEY_FRACTION),
        )

    @property
    def state(self) -> tuple[Tensor, Tensor]:
        """The tensors whose old values a call reads and then changes."""
        return self._sums, self.places

    def take(self, batch: Batch, tokens: Tensor, operand: Tensor, steps: Tensor) -> None:
        """Add the runs' tokens to the memory.

        Args:
            batch: the runs.
            tokens: int64 [N], padded.
            operand: int8 [2, N, K], padded, the limbs of the hidden states.
            steps: float64 [N], padded, the steps of the hidden states.
        """
        launch(
            _remember_kernel, (len(batch.slots),), batch.slots, batch.positions, batch.counts, batch.firsts, tokens,
            operand, steps, self._inverse, self.tokens, self._keys, self._sums, self.places, self._keys.shape[1],
            operand.stride(0), operand.stride(1), self._dim, self._keys.shape[2],
            BLOCK=triton.next_power_of_2(self._dim), num_warps=4,
        )  # fmt: skip

    def measure(self, batch: Batch, most: int, at: int = 0) -> Measures:
        """Measure the tokens of the last `take`, as many rows as the measures have room for.

        The reader of the measures must clear them.

        Args:
            batch: the runs of the last `take`.
            most: tokens of the longest run.
            at: the first row to measure.
        """
        m = self._measures
        queries, warps = (64, 8) if most > 16 else (16, 4)
        launch(
            _measure_kernel, (len(batch.slots), -(-most // queries), _SPLITS), batch.slots, batch.counts,
            batch.begins, self.tokens, self._keys, self.places, m.agreement, m.similarity, at, len(m.agreement),
            self.tokens.shape[1], self._history, self._keys.shape[2], self._vocabulary, QUERIES=queries, KEYS=_KEYS,
            INPUTS=_INPUTS, SPLITS=_SPLITS, num_warps=warps,
        )  # fmt: skip
        return m


def _capacity(history: int, fresh: int) -> int:
    """Return the size of a ring, in positions."""
    return history + fresh + PATTERN_BITS + REST_BITS


def slot_bytes(dim: int, vocabulary: int) -> int:
    """Return the bytes of the memory for each decoding slot, which adds one token at a time."""
    return _capacity(HISTORY, 1) * (padded(dim, _INPUTS) + 4) + 8 * (dim + vocabulary)
