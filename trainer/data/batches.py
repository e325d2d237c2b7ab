"""Training batches from token shards, as a pure function of a seed and a position: a resumed run gets the same batches.

The shards of a split are one stream of tokens. Row i is the `seq_len` + 1 tokens from position i * `seq_len`, so that
every token but the first is a target once an epoch. Each epoch visits all rows in its own order; from the second on,
the documents of the stream have an order of their own, too (`trainer.data.reorder`).
"""

from collections.abc import Sequence
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from codec.errors import CodecError, FormatError
from trainer.data.reorder import Places, Reordered, document_places
from trainer.data.shards import BOS, check_vocabulary, read_shard

ROUNDS = 6
"""Rounds of multiply, add and shift in `permuted`. A bit reaches all others in two rounds; the rest is margin."""


class Batches:
    """The rows of one rank; the rows of all ranks, joined in order, are the rows of a single process.

    Args:
        shards: paths of the shards, in the order of the stream.
        seq_len: targets a row.
        vocab_size: of the model; a token outside the vocabulary is reported before it reaches a device.
        seed: of the order of rows.
        rank: of this process.
        world: number of processes.
        begin: the token at which documents begin.

    Attributes:
        tokens: tokens of the stream.
        rows: rows of an epoch; a batch may end one epoch and begin the next.

    Raises:
        FormatError: a shard is broken, or there are too few tokens for one row.
    """

    def __init__(
        self,
        shards: Sequence[str | Path],
        seq_len: int,
        vocab_size: int,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        begin: int = BOS,
    ):
        self._shards = [np.asarray(read_shard(path)) for path in shards]  # still mapped; slices faster
        self._names = [str(path) for path in shards]
        self._starts = np.cumsum([0, *map(len, self._shards)])
        self.tokens = int(self._starts[-1])
        self.seq_len = seq_len
        self.rows = (self.tokens - 1) // seq_len
        if self.rows < 1:
            raise FormatError(
                f"{len(shards)} shards of {self.tokens:,} tokens together, expected at least {seq_len + 1} for one row "
                f"of {seq_len}; prepare more text or choose a shorter row"
            )
        self._vocab_size, self._seed, self._rank, self._world = vocab_size, seed, rank, world
        self._begin = begin
        self._epoch = lru_cache(2)(self._reordered)  # a batch may end one epoch and begin the next

    def take(self, first: int, count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return inputs and targets [count / world, seq_len] of rows `first` to `first + count` of all epochs.

        Raises:
            CodecError: `count` is not a multiple of the number of ranks.
            MismatchError: a token is not in the vocabulary.
        """
        tokens = self.read(split_rows(first, count, self._rank, self._world))
        return np.ascontiguousarray(tokens[:, :-1]), np.ascontiguousarray(tokens[:, 1:])

    def read(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return rows by their numbers among the rows of all epochs: [len(numbers), seq_len + 1].

        Raises:
            MismatchError: a token is not in the vocabulary.
        """
        tokens = np.empty((len(numbers), self.seq_len + 1), np.int64)
        rows, epochs = self._order(numbers).tolist(), (numbers // self.rows).tolist()
        for out, row, epoch in zip(tokens, rows, epochs, strict=True):
            position = row * self.seq_len
            if not epoch:
                self._read(position, out)
                continue
            for origin, length in self._epoch(epoch).pieces(position, len(out)):
                self._read(origin, out[:length])
                out = out[length:]
        return tokens

    def _order(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the rows at `positions` of the endless sequence of epochs."""
        epochs, within = np.divmod(positions, self.rows)
        out = np.empty_like(within)
        for epoch in np.unique(epochs).tolist():
            here = epochs == epoch
            out[here] = permuted(within[here], self.rows, (self._seed, epoch))
        return out

    @cached_property
    def _places(self) -> Places:
        """Return where documents begin; a first epoch does not need this pass over all tokens."""
        return document_places(self._shards, self._begin)

    def _reordered(self, epoch: int) -> Reordered:
        """Return the stream of an epoch; its key is longer than that of the order of rows, and so another."""
        count = len(self._places) - 1
        return Reordered(self._places, permuted(np.arange(count), count, (self._seed, epoch, 1)))

    def _read(self, position: int, out: NDArray[np.int64]) -> None:
        """Fill `out` with the stream's tokens from `position`, across the ends of shards."""
        shard = int(np.searchsorted(self._starts, position, "right")) - 1
        while len(out):
            offset = position - int(self._starts[shard])
            part = self._shards[shard][offset : offset + len(out)]
            check_vocabulary(part, self._vocab_size, f"shard {self._names[shard]}", offset)
            out[: len(part)] = part
            out, position, shard = out[len(part) :], position + len(part), shard + 1


def split_rows(first: int, count: int, rank: int, world: int) -> NDArray[np.int64]:
    """Return the numbers of a rank's rows among rows `first` to `first + count`: [count / world].

    Raises:
        CodecError: `count` is not a multiple of the number of ranks.
    """
    if count < 1 or count % world:
        raise CodecError(f"a batch of {count} rows over {world} ranks; choose a multiple of {world}")
    local = count // world
    return np.arange(local) + (first + rank * local)


def permuted(index: NDArray[np.int64], size: int, key: tuple[int, ...]) -> NDArray[np.int64]:
    """Map each of `index` by a permutation of range(size) that `key` (integers >= 0) chooses; no table is made.

    Multiplication by an odd number, addition and a right-shifted exclusive or are bijections of the integers below a
    power of two. Results of `size` or above are mapped again until they are below (Black and Rogaway 2002).
    """
    bits = max(1, (size - 1).bit_length())
    mask, shift = np.uint64((1 << bits) - 1), np.uint64((bits + 1) // 2)
    keys = np.random.SeedSequence(key).generate_state(2 * ROUNDS, np.uint64)
    out = index.astype(np.uint64)
    outside = np.ones(out.shape, np.bool_)
    while outside.any():
        x = out[outside]
        for factor, summand in zip(keys[::2] | np.uint64(1), keys[1::2], strict=True):
            x = (x * factor + summand) & mask
            x ^= x >> shift
        out[outside] = x
        outside = out >= size
    return out.astype(np.int64)
