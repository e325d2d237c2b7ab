"""Define the protocols that a backend fulfils: the operations that the coder needs from a model."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]
States = NDArray[np.uint64]
"""The states of the range decoders, uint64 [slots, 3]."""


class Decoder(Protocol):
    """Decoding slots, numbered from 0, each of which decodes its own part of the data.

    A slot is idle before its first `load`, after it has decoded the end of a document, and while it waits for
    memory. The state of a slot's stream is that of `codec.entropy.range_coder`.
    """

    ahead: int
    """The number of launches to queue behind the one that the caller waits for. `load` takes effect after all of them.
    """

    def load(self, slots: Sequence[int], begins: Integers, ends: Integers) -> None:
        """Start a document in each of some slots.

        Args:
            slots: numbers of the slots [n].
            begins: int64 [n], where each document's payload begins in the data.
            ends: int64 [n], where each payload ends.
        """

    def launch(self) -> Callable[[], tuple[Integers, States]]:
        """Start to decode a few tokens in every slot.

        Returns:
            A function that waits for the tokens, int64 [steps, slots], and for the states after them. A slot's tokens
            are -1 from the step on at which the slot is idle.
        """

    def keep(self, slots: Sequence[int]) -> None:
        """Drop all slots but these, and renumber them in this order. No launch may be under way."""


class Slots(Protocol):
    """Decoding slots, numbered from 0, each with a sequence that grows by single tokens."""

    def step(
        self, slots: Integers, tokens: Integers, previous: Integers, positions: Integers, targets: Integers
    ) -> Integers:
        """Run one more token in some slots, and find the symbol that follows each token.

        Args:
            slots: int64 [n], numbers of the slots. A slot that is left out must begin at position 0 when it runs again.
            tokens: int64 [n], the token that each slot runs. A token sees the last `window` tokens of its sequence.
            previous: int64 [n], the token before each of the tokens (any value at position 0).
            positions: int64 [n], the positions of the tokens in their sequences.
            targets: int64 [n], cumulative frequencies in [0, 2^total_bits).

        Returns:
            (symbol, start, frequency) int64 [3, n] of the interval that contains each target.
        """

    def keep(self, slots: Sequence[int]) -> None:
        """Drop all slots but these, and renumber them in this order."""


class Distributions(Protocol):
    """Sequences that grow by single tokens, each in a slot numbered from 0; what may follow comes back whole."""

    def step(self, slots: Integers, tokens: Integers, previous: Integers, positions: Integers) -> Integers:
        """Run one more token of some slots.

        Args:
            slots: int64 [n]; the others are idle, and begin at position 0 if they run again.
            tokens: int64 [n], the token at `positions` of each slot.
            previous: int64 [n], the token before (any value at position 0).
            positions: int64 [n].

        Returns:
            `codec.entropy.frequencies.ordered_sums` int64 [n, K + 1], overwritten by the next call.
        """


class Backend(Protocol):
    """A model with the operations that the coder needs."""

    packs: bool = False
    """Says whether inputs of one `score` without `past` cost what each of them costs, not what the longest does."""

    def slot_bytes(self, tokens: int) -> int:
        """Return the bytes that a decoding slot takes while it has a document of `tokens` tokens."""

    def memory(self, documents: int, tokens: int) -> Any:
        """Create the match model's memory for documents that are scored chunk after chunk.

        Args:
            documents: how many documents there are.
            tokens: how many tokens the longest document has.

        Returns:
            The memory, for `score`; None if the pack has no match model.
        """

    def past(self, documents: int, window: int) -> Any:
        """Create the KV cache for documents that are scored chunk after chunk.

        Args:
            documents: how many documents there are.
            window: how many tokens a token sees, itself included.

        Returns:
            The empty cache, for `score`.
        """

    def score(
        self, inputs: Sequence[Integers], targets: Sequence[Integers], memory: Any = None, past: Any = None
    ) -> NDArray[np.float64]:
        """Compute the intervals of known tokens.

        Without `past`, the network runs each input from position 0. With `past`, the inputs are the next chunks of the
        first documents of the cache, in order; the call adds these chunks to the cache. Chunks of documents that go on
        afterwards all have the same length, a multiple of CHUNK_UNIT. No chunk is longer than those of
        `codec.exact.chunks.prefill_chunks`, and every token of a chunk is scored.

        Args:
            inputs: int64 [T] each. Inputs do not see each other.
            targets: int64 [t] each, t <= T: the tokens that follow the last t tokens of each input.
            memory: the match model's memory of documents, or None if each input is a whole document. The inputs belong
                to the first documents of the memory, in order. A document begins anew when its position 0 is scored;
                otherwise earlier calls have scored the input's tokens before the last t.
            past: the KV cache of the chunks before, or None.

        Returns:
            (start, frequency, bits), float64 [3, N], of all targets in turn; see
            `codec.entropy.frequencies.intervals`. The bits are those without the match model.
        """

    def launch(
        self, inputs: Sequence[Integers], targets: Sequence[Integers], memory: Any = None, past: Any = None
    ) -> Callable[[], NDArray[np.float64]]:
        """Start `score` and return a function that waits for its result.

        On a GPU the batch is queued when this method returns, so the next batch may be launched before waiting. On a
        processor the work is already done.
        """
        found = self.score(inputs, targets, memory, past)
        return lambda: found

    def decoder(self, count: int, data: NDArray[np.uint8], window: int, room: int | None = None) -> Decoder:
        """Create `count` idle decoding slots.

        Args:
            count: how many slots there are.
            data: uint8, the payloads of all documents.
            window: how many tokens a token sees, itself included.
            room: bytes for all slots, or None for as many as they need. A slot for which there is no room waits. The
                longest document always has room.
        """

    def ordered_sums(
        self, inputs: Sequence[Integers], order: Integers, past: Any, cuts: Integers
    ) -> Callable[[], Integers]:
        """Start to compute entries of the distributions behind the next chunks of documents; recall has no part in it.

        Args:
            inputs: int64 [T] each, the next chunks of the documents, as of `score`.
            order: int64 [V], the order of the symbols.
            past: of the documents, as of `score`; never None.
            cuts: int64 [2, K], row and column of each entry, the rows ascending.

        Returns:
            what waits for the entries, int64 [K], of `codec.entropy.frequencies.ordered_sums` of all inputs in turn,
            which as a whole, [N, V + 1], would fill the memory.
        """

    def distributions(self, count: int, window: int, order: Integers) -> Distributions:
        """Make `count` idle slots; each token sees the last `window` tokens of its slot, itself included."""
