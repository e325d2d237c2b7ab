"""Rows of several sources, each read so often beside the others, as a pure function of seed and position.

The endless sequence of rows is cut into periods of `PERIOD` rows. Each source has so many places in a period as its
weight times its length wants, spread by a permutation; a source's rows come in the order of its own `Batches`.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from codec.errors import CodecError
from trainer.data.batches import Batches, permuted, split_rows

PERIOD = 4096
"""Rows after which places repeat: a source's share is rounded to 1 / 4096 of all rows."""

PLACES = 1 << 65
"""Added to the seed for places, so that they have another order than the rows of any source."""


class Mixed:
    """The rows of one rank, from several sources; the same interface as `Batches`.

    Args:
        sources: the rows of each source, of one length; their ranks do not matter.
        weights: how often each source is read while one of weight 1 is read once, above 0.
        seed: of the places.
        rank: of this process.
        world: number of processes.

    Attributes:
        tokens: tokens that are read while a source of weight 1 is read once.
        rows: rows of these tokens.
        seq_len: targets a row.

    Raises:
        CodecError: a weight of 0 or less, or a source that gets no place in a period.
    """

    def __init__(
        self, sources: Sequence[Batches], weights: Sequence[float], seed: int = 0, rank: int = 0, world: int = 1
    ):
        self._sources, self._rank, self._world = sources, rank, world
        self.seq_len = sources[0].seq_len
        wanted = np.array([source.rows * weight for source, weight in zip(sources, weights, strict=True)])
        if (wanted <= 0).any():
            raise CodecError(f"mixture: weights {list(weights)}, expected numbers above 0")
        self.rows = int(wanted.sum())
        self.tokens = int(sum(source.tokens * weight for source, weight in zip(sources, weights, strict=True)))
        self._counts = apportion(wanted, PERIOD)
        if not self._counts.all():
            raise CodecError(
                f"mixture: source {int(np.argmin(self._counts)) + 1} of {len(sources)} is less than 1 / {2 * PERIOD} "
                "of the rows; give it more weight or leave it out"
            )
        owners = np.repeat(np.arange(len(sources)), self._counts)
        self._owner = owners[permuted(np.arange(PERIOD), PERIOD, (seed + PLACES,))]
        self._nth = np.empty(PERIOD, np.int64)  # which of its source's places in a period a place is
        for source in range(len(sources)):
            self._nth[self._owner == source] = np.arange(self._counts[source])

    def take(self, first: int, count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return inputs and targets [count / world, seq_len] of rows `first` to `first + count`.

        Raises:
            CodecError, MismatchError: as `Batches.take`.
        """
        numbers = split_rows(first, count, self._rank, self._world)
        periods, places = np.divmod(numbers, PERIOD)
        tokens = np.empty((len(numbers), self.seq_len + 1), np.int64)
        for number, source in enumerate(self._sources):
            here = self._owner[places] == number
            if here.any():
                tokens[here] = source.read(periods[here] * self._counts[number] + self._nth[places[here]])
        return np.ascontiguousarray(tokens[:, :-1]), np.ascontiguousarray(tokens[:, 1:])


def apportion(wanted: NDArray[np.float64], total: int) -> NDArray[np.int64]:
    """Return whole numbers of a sum of `total` in proportion to `wanted`, by the largest remainders (Hamilton).

    >>> apportion(np.array([1.0, 1.0, 1.0]), 10)
    array([4, 3, 3])
    """
    exact = wanted * (total / wanted.sum())
    found = np.floor(exact).astype(np.int64)
    order = np.argsort(found - exact, kind="stable")
    found[order[: total - int(found.sum())]] += 1
    return found
