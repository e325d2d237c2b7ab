"""Compute with torch the integers that every backend must give: the reference."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from codec.entropy import frequencies
from codec.exact.backend import Backend, Integers
from codec.exact.host_decoder import HostDecoder
from codec.exact.network import ChunkCache, ExactNetwork
from codec.exact.recall import HISTORY, Recall
from codec.exact.recall_memory import Memory

_HEAD_ROWS = {"cpu": 512, "cuda": 8192}  # rows of logits in memory at once


class TorchBackend(Backend):
    """A `Backend` that computes with torch on the model's device: the reference."""

    def __init__(self, model: ExactNetwork, recall: Recall | None = None):
        self._model, self._recall = model, recall
        c = model.config
        self._slot_bytes = 2 * len(c.schedule) * c.kv_dim * c.window * 8
        if recall:
            self._slot_bytes += HISTORY * (5 * c.model_dim + 64)  # keys of 8 bits, and of 32 bits during products

    def slot_bytes(self, tokens: int) -> int:
        """See `Backend`."""
        return self._slot_bytes

    def memory(self, documents: int, tokens: int) -> Memory | None:
        """See `Backend`."""
        if not self._recall:
            return None
        return Memory(self._recall, documents, self._model.config.model_dim, self._model.device, min(tokens, HISTORY))

    def past(self, documents: int, window: int) -> ChunkCache:
        """See `Backend`."""
        return self._model.new_past(documents, window)

    def score(
        self,
        inputs: Sequence[Integers],
        targets: Sequence[Integers],
        memory: Memory | None = None,
        past: ChunkCache | None = None,
    ) -> NDArray[np.float64]:
        """See `Backend`."""
        begin = past.length if past else 0
        longest = max(map(len, inputs))
        tokens = np.zeros((len(inputs), longest), np.int64)
        for row, window in enumerate(inputs):
            tokens[row, : len(window)] = window
        hidden, step = self._model.forward(self._tensor(tokens), past=past)
        ends = [row * longest + len(window) for row, window in enumerate(inputs)]
        rows = np.concatenate([np.arange(end - len(t), end) for end, t in zip(ends, targets, strict=True)])
        hidden, step, wanted = hidden.flatten(0, 1), step.flatten(0, 1), self._tensor(np.concatenate(targets))
        out, size = np.empty((3, len(rows))), _HEAD_ROWS[self._model.device.type]
        for at in range(0, len(rows), size):
            index = self._tensor(rows[at : at + size])
            levels = self._model.levels(hidden[index], step[index])
            parts = frequencies.intervals(levels, wanted[at : at + size])
            out[:, at : at + size] = torch.stack([part.double() for part in parts]).cpu().numpy()
        if memory := memory or self.memory(len(inputs), longest):
            out[:2] = self._recalled(inputs, targets, (hidden, step), longest, memory, begin)
        return out

    def _recalled(
        self,
        inputs: Sequence[Integers],
        targets: Sequence[Integers],
        hidden: tuple[torch.Tensor, torch.Tensor],
        longest: int,
        memory: Memory,
        begin: int,
    ) -> NDArray[np.float64]:
        """Compute (start, frequency) [2, N] with the match model: one token of every document at a time.

        The first token of each input is at position `begin` of its document.
        """
        firsts = [len(window) - len(after) for window, after in zip(inputs, targets, strict=True)]
        begins = np.cumsum([0, *map(len, targets)])
        out = np.empty((2, begins[-1]))
        for position in range(min(firsts), longest):
            running = [n for n, window in enumerate(inputs) if firsts[n] <= position < len(window)]
            if not running:
                continue
            places = [position - firsts[n] for n in running]
            following = [targets[n][place] for n, place in zip(running, places, strict=True)]
            tokens = self._tensor(np.array([inputs[n][position] for n in running]))
            slots = self._tensor(np.array(running))
            here = hidden[0][slots * longest + position], hidden[1][slots * longest + position]
            levels = memory.step(
                slots, torch.full_like(slots, begin + position), tokens, here, self._model.levels(*here)
            )
            found = torch.stack(frequencies.intervals(levels, self._tensor(np.array(following)))[:2])
            out[:, begins[running] + places] = found.cpu().numpy()
        return out

    def decoder(self, count: int, data: NDArray[np.uint8], window: int, room: int | None = None) -> HostDecoder:
        """See `Backend`; every slot has room for a whole window."""
        slots = TorchSlots(self._model, count, window, self.memory(count, HISTORY))
        return HostDecoder(self._model.config, slots, count, data)

    def ordered_sums(
        self, inputs: Sequence[Integers], order: Integers, past: ChunkCache, cuts: Integers
    ) -> Callable[[], Integers]:
        """See `Backend`."""
        longest, device = max(map(len, inputs)), self._model.device
        tokens, rows = np.zeros((len(inputs), longest), np.int64), []
        for row, window in enumerate(inputs):
            tokens[row, : len(window)] = window
            rows.append(np.arange(len(window)) + row * longest)
        hidden, step = self._model.forward(self._tensor(tokens), past=past)
        hidden, step, index = hidden.flatten(0, 1), step.flatten(0, 1), self._tensor(np.concatenate(rows))
        found, size = np.empty(cuts.shape[1], np.int64), _HEAD_ROWS[device.type]
        for at in range(0, len(index), size):
            levels = self._model.levels(hidden[index[at : at + size]], step[index[at : at + size]])
            sums = frequencies.ordered_sums(levels, self._tensor(order)).cpu().numpy()
            begin, end = np.searchsorted(cuts[0], (at, at + size))
            found[begin:end] = sums[cuts[0, begin:end] - at, cuts[1, begin:end]]
        return lambda: found

    def distributions(self, count: int, window: int, order: Integers) -> "TorchDistributions":
        """See `Backend`."""
        return TorchDistributions(self._model, count, window, self._tensor(order))

    def _tensor(self, values: Integers) -> torch.Tensor:
        return torch.from_numpy(values).to(self._model.device)


class TorchDistributions:
    """`codec.exact.backend.Distributions` of a `TorchBackend`: every step runs all slots, idle ones too."""

    def __init__(self, model: ExactNetwork, count: int, window: int, order: torch.Tensor):
        self._model, self._count, self._order = model, count, order
        self._cache = model.new_cache(count, window)

    def step(self, slots: Integers, tokens: Integers, previous: Integers, positions: Integers) -> Integers:
        """See `codec.exact.backend.Distributions`."""
        inputs = np.zeros((3, self._count), np.int64)
        inputs[:, slots] = tokens, previous, positions
        all_tokens, all_previous, all_positions = torch.from_numpy(inputs).to(self._model.device)
        hidden, step = self._model.step(all_tokens, all_previous, all_positions, self._cache)
        return frequencies.ordered_sums(self._model.levels(hidden, step)[:, 0], self._order).cpu().numpy()[slots]


class TorchSlots:
    """Decoding slots of a `TorchBackend` (`codec.exact.backend.Slots`). A step runs all slots, the idle ones too."""

    def __init__(self, model: ExactNetwork, count: int, window: int, memory: Memory | None):
        self._model, self._count, self._memory = model, count, memory
        self._cache = model.new_cache(count, window)

    def step(
        self, slots: Integers, tokens: Integers, previous: Integers, positions: Integers, targets: Integers
    ) -> Integers:
        """See `codec.exact.backend.Slots`."""
        device = self._model.device
        inputs = np.zeros((4, self._count), np.int64)
        inputs[:, slots] = tokens, previous, positions, targets
        all_tokens, all_previous, all_positions, all_targets = torch.from_numpy(inputs).to(device)
        hidden, step = self._model.step(all_tokens, all_previous, all_positions, self._cache)
        levels = self._model.levels(hidden, step)[:, 0]
        if self._memory:
            index = torch.from_numpy(slots).to(device)
            here = hidden[index, 0], step[index, 0]
            raised = self._memory.step(index, all_positions[index], all_tokens[index], here, levels[index])
            levels = levels.index_copy(0, index, raised)
        found = torch.stack(frequencies.find(levels, all_targets))
        return found.cpu().numpy()[:, slots]

    def keep(self, slots: Sequence[int]) -> None:
        """See `codec.exact.backend.Slots`."""
        index = torch.tensor(slots, device=self._model.device)
        self._count = len(slots)
        if self._memory:
            self._memory.keep(index)
        self._cache = replace(
            self._cache, keys=[k[index] for k in self._cache.keys], values=[v[index] for v in self._cache.values]
        )
