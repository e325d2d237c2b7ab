"""Decode on the host: run range decoders beside the steps of a model, one token in every decoding slot at a time."""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from codec.compiled import compiled, making
from codec.devices import threaded
from codec.entropy import range_coder
from codec.exact.backend import Integers, Slots, States
from codec.model.config import AnyConfig
from codec.numerics.widths import total_bits


class HostDecoder:
    """A `Decoder` whose range decoders run on the host.

    Args:
        config: the model's shape.
        slots: the model's decoding slots, empty.
        count: how many slots there are.
        data: uint8, the payloads of all documents.
        threads: that each step some of the slots; the model's `step` must allow that.
        steps: tokens of each slot that a launch decodes, while no thread waits for another.
    """

    ahead = 0

    def __init__(
        self, config: AnyConfig, slots: Slots, count: int, data: NDArray[np.uint8], threads: int = 1, steps: int = 1
    ):
        self._slots, self._data = slots, data
        self._threads, self._steps = threads, steps
        self._begin, self._end, self._bits = config.begin, config.end, total_bits(config.vocab_size)
        self._bounds = np.zeros((count, 2), np.int64)
        self._states = np.zeros((count, 3), np.uint64)
        self._next = np.zeros((3, count), np.int64)  # the token that runs next, the token before, the position
        self._runs = np.zeros(count, np.bool_)

    def load(self, slots: Sequence[int], begins: Integers, ends: Integers) -> None:
        """See `Decoder`."""
        index = list(slots)
        self._bounds[index] = np.stack((begins, ends), 1)
        for slot, begin, end in zip(slots, begins, ends, strict=True):
            range_coder.start_decoder(self._states[slot], self._data[begin:end])
        self._next[:, index] = np.array([[self._begin], [self._begin], [0]])
        self._runs[index] = True

    def launch(self) -> Callable[[], tuple[Integers, States]]:
        """See `Decoder`."""
        out = np.full((self._steps, len(self._runs)), -1)
        slots = np.flatnonzero(self._runs)
        parts = np.array_split(slots, min(self._threads, len(slots))) if len(slots) else []
        threaded([partial(self._decode, part, out) for part in parts])
        states = self._states.copy()
        return lambda: (out, states)

    def _decode(self, slots: Integers, out: Integers) -> None:
        """Decode tokens of some slots [n], until each has ended or `out` [steps, count] is full."""
        for row in out:
            if len(slots):
                row[slots] = self._step(slots)
                slots = slots[self._runs[slots]]

    def _step(self, slots: Integers) -> Integers:
        """Decode the next symbol of each of some slots [n]."""
        tokens, previous, positions = self._next[:, slots]
        targets = _targets(self._states, slots, self._bits)
        symbols, starts, sizes = self._slots.step(slots, tokens, previous, positions, targets)
        _advance(self._states, slots, self._data, self._bounds, starts, sizes, self._bits)
        self._next[:, slots] = symbols, tokens, positions + 1
        self._runs[slots] = symbols != self._end
        return symbols

    def keep(self, slots: Sequence[int]) -> None:
        """See `Decoder`."""
        self._slots.keep(slots)
        index = list(slots)
        self._bounds, self._states = self._bounds[index], self._states[index]
        self._next, self._runs = self._next[:, index], self._runs[index]


@making
def _targets(states: States, slots: NDArray[np.int64], bits: int) -> NDArray[np.int64]:
    """Return the cumulative frequency that each slot's stream points at, int64 [n] in [0, 2^bits)."""
    out = np.empty(len(slots), np.int64)
    for i, slot in enumerate(slots):
        out[i] = range_coder.target(states[slot], states[slot, 1] >> np.uint64(bits), 1 << bits)
    return out


@compiled
def _advance(states, slots, data, bounds, starts, sizes, bits):
    for i, slot in enumerate(slots):
        payload = data[bounds[slot, 0] : bounds[slot, 1]]
        range_coder.take(states[slot], payload, starts[i], sizes[i], states[slot, 1] >> np.uint64(bits))
