"""Say what the coder asks of a model: the protocols that a backend fulfils."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]
States = NDArray[np.uint64]
"""Of the range decoders, uint64 [lanes, 3]."""


class Decoder(Protocol):
    """Lanes numbered from 0, each decoding its own part of some data, whose state is `codec.entropy.range_coder`'s.

    A lane is idle until it is loaded, once it has decoded the end of a document, and while it waits for memory.
    """

    ahead: int
    """How many launches are worth having under way behind the one that is waited for. `load` takes effect behind all
    of them."""

    def load(self, lanes: Sequence[int], begins: Integers, ends: Integers) -> None:
        """Begin a document, with the data from `begins` to `ends`."""

    def launch(self) -> Callable[[], tuple[Integers, States]]:
        """Decode a few tokens of every lane.

        Returns:
            what waits for them: int64 [steps, lanes], -1 from where a lane is idle, and the states behind them.
        """

    def keep(self, lanes: Sequence[int]) -> None:
        """Drop all lanes but these, which are numbered in this order from now on. Every launch has been waited for."""


class Lanes(Protocol):
    """Sequences that grow by single tokens, each in a lane numbered from 0."""

    def step(
        self, lanes: Integers, tokens: Integers, previous: Integers, positions: Integers, targets: Integers
    ) -> Integers:
        """Run one more token of some lanes and find what follows it.

        Args:
            lanes: int64 [n]; the others are idle, and begin at position 0 if they run again.
            tokens: int64 [n], the token at `positions` of each lane, which sees the last of the lane's tokens.
            previous: int64 [n], the token before it (any value at position 0).
            targets: int64 [n], in [0, 2^total_bits).

        Returns:
            (symbol, start, frequency) int64 [3, n] of the interval that contains each target.
        """

    def keep(self, lanes: Sequence[int]) -> None:
        """Drop all lanes but these, which are numbered in this order from now on."""


class Distributions(Protocol):
    """Sequences that grow by single tokens, each in a slot numbered from 0; what may follow comes back whole."""

    def step(self, slots: Integers, tokens: Integers, previous: Integers, positions: Integers) -> Integers:
        """Run one more token of some slots.

        Args:
            slots, tokens, previous, positions: as of `Lanes.step`.

        Returns:
            `codec.entropy.frequencies.ordered_sums` int64 [n, K + 1], overwritten by the next call.
        """


class Backend(Protocol):
    """A model as the coder sees it."""

    def lane_bytes(self, tokens: int) -> int:
        """Memory that a lane of a decoder takes while it has a document of so many tokens."""

    def memory(self, documents: int, tokens: int) -> Any:
        """What recall is to know of so many documents, of `tokens` tokens at most, whose chunks are scored in turn.

        None without recall.
        """

    def past(self, documents: int, window: int) -> Any:
        """What the chunks of so many documents are to see of the chunks before.

        Each token sees the last `window` tokens, itself included.
        """

    def score(
        self, inputs: Sequence[Integers], targets: Sequence[Integers], memory: Any = None, past: Any = None
    ) -> NDArray[np.float64]:
        """Intervals of known tokens.

        Args:
            inputs: int64 [T] each, windows that do not see each other.
            targets: int64 [t] each, t <= T: the tokens that follow the last t inputs of each window.
            memory: of documents whose first are these, in this order; the inputs before the last t have been scored in
                earlier calls. Where all of a window is scored, its document begins, unless there is a past. None: all
                windows are documents.
            past: of documents whose first are these, in this order, and of which the inputs are the next chunks, taken
                in by the call. All of a chunk is scored. Those of documents that go on behind them are of one length, a
                multiple of BAND_UNIT; none is longer than those of `codec.exact.chunks.band_chunks`.

        Returns:
            (start, frequency, bits) float64 [3, N] of all targets in turn; see `codec.entropy.frequencies.intervals`.
            The bits are those without recall.
        """

    def launch(
        self, inputs: Sequence[Integers], targets: Sequence[Integers], memory: Any = None, past: Any = None
    ) -> Callable[[], NDArray[np.float64]]:
        """What waits for `score`; a GPU is at it when this returns, and may be given more before it is waited for.

        Where nothing goes on by itself, all is done by then.
        """
        found = self.score(inputs, targets, memory, past)
        return lambda: found

    def decoder(self, count: int, data: NDArray[np.uint8], window: int, room: int | None = None) -> Decoder:
        """`count` idle lanes that will decode parts of `data`.

        Each token of a lane sees the last `window` tokens, itself included. With `room`, in bytes, for less than all
        lanes may take, a lane waits while there is none; the longest document always has room.
        """

    def ordered_sums(self, inputs: Sequence[Integers], order: Integers, past: Any) -> Callable[[], Integers]:
        """Start to compute the whole distributions behind the next chunks of documents; recall has no part in it.

        Args:
            inputs, past: as of `score`; the past is never None.
            order: int64 [K], the order of the symbols; those that no tokenizer makes may be left out.

        Returns:
            what waits for `codec.entropy.frequencies.ordered_sums`, int64 [N, K + 1], of all inputs in turn.
        """

    def distributions(self, count: int, window: int, order: Integers) -> Distributions:
        """`count` idle slots; each token sees the last `window` of its slot, itself included."""
