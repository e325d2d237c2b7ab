"""Run the exact model on a processor: `codec.backends.cpu.network` with a model's constants, over several threads.

The constants are those of the reference (`codec.exact.weights`). `codec.backends.select` compares the backend with the
reference before the backend is used.
"""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from codec import compiled
from codec.backends.cpu import constants as cpu_network
from codec.backends.cpu import head as cpu_head
from codec.backends.cpu import network
from codec.backends.cpu import recall as cpu_recall
from codec.backends.cpu.embedding import Embedding
from codec.backends.cpu.matmul import COLUMNS, WIDE, project
from codec.devices import compute_threads, threaded
from codec.errors import UnsupportedError
from codec.exact.backend import Backend
from codec.exact.host_decoder import HostDecoder
from codec.exact.recall import HISTORY, Recall
from codec.exact.weights import Weights, check, check_known
from codec.model.config import AnyConfig
from codec.numerics import tables
from codec.numerics.widths import total_bits

Integers = NDArray[np.int64]
Hidden = tuple[NDArray[np.int32], NDArray[np.float64]]

_JOB_TOKENS = 256  # tokens of short inputs that a thread takes together
_STEPS = 16  # tokens that threads decode before they wait for each other
_CHUNK = 64  # rows in one call: enough to read weights seldom, few enough for a second-level cache


class Cache(NamedTuple):
    """Rings of keys and values as `codec.backends.cpu.network.run` reads them, and the positions that a row sees."""

    keys: NDArray[np.int16]
    values: NDArray[np.int16]
    window: int


@dataclass
class ChunkCache:
    """Keys and values of the chunks scored so far, for documents that advance together.

    All documents have had equally many tokens until one ends.
    """

    cache: Cache
    last: Integers  # int64 [documents], the documents' last tokens
    length: int = 0  # tokens of each document so far


class CpuNetwork(Backend):
    """Run a model of any family on a processor, as a `codec.exact.backend.Backend`.

    Raises:
        UnsupportedError: functions are not compiled.
    """

    def __init__(self, config: AnyConfig, recall: Recall | None):
        if not compiled.ENABLED:
            raise UnsupportedError("NUMBA_DISABLE_JIT is set")
        self.config, self._recall = config, recall
        self.octave, self.exp2 = cpu_head.octave(), tables.exp2_table(total_bits(config.vocab_size)).astype(np.int32)
        self._slot_bytes = sum(part.nbytes for part in _cache(config, 1, config.window)[:2])
        if recall:
            self._slot_bytes += sum(part.nbytes for part in cpu_recall.new_memory(recall, 1, config.model_dim))

    @abstractmethod
    def run(self, rows: Integers, cache: Cache) -> Hidden:
        """Run rows through the network.

        Args:
            rows: int64 [4, n]: token, token before, position, slot.
            cache: the slots' keys and values, to which the rows' own are added.

        Returns:
            The snapped last hidden states int32 [n, dim] and their steps [n].
        """

    @abstractmethod
    def levels(self, hidden: NDArray[np.int32], steps: NDArray[np.float64]) -> NDArray[np.int32]:
        """Compute `ExactNetwork.levels`, int32 [n, V], from the results of `run`."""

    def slot_bytes(self, tokens: int) -> int:
        """See `codec.exact.backend.Backend`."""
        return self._slot_bytes

    def memory(self, documents: int, tokens: int) -> cpu_recall.Memory | None:
        """See `codec.exact.backend.Backend`."""
        if not self._recall:
            return None
        return cpu_recall.new_memory(self._recall, documents, self.config.model_dim, min(tokens, HISTORY))

    def past(self, documents: int, window: int) -> ChunkCache:
        """See `codec.exact.backend.Backend`."""
        return ChunkCache(_cache(self.config, documents, window, _CHUNK), np.zeros(documents, np.int64))

    def score(
        self,
        inputs: Sequence[Integers],
        targets: Sequence[Integers],
        memory: cpu_recall.Memory | None = None,
        past: ChunkCache | None = None,
    ) -> NDArray[np.float64]:
        """See `codec.exact.backend.Backend`."""
        memory = memory or self.memory(len(inputs), max(map(len, inputs)))
        jobs: list[tuple[list[int], list[Integers], list[Integers]]] = []
        for n, (window, wanted) in enumerate(zip(inputs, targets, strict=True)):
            if not jobs or sum(map(len, jobs[-1][1])) + len(window) > _JOB_TOKENS:
                jobs.append(([], [], []))
            jobs[-1][0].append(n)
            jobs[-1][1].append(window)
            jobs[-1][2].append(wanted)
        found = np.concatenate(threaded([partial(self._score, memory, past, *job) for job in jobs]), axis=1)
        if past:
            past.length += max(map(len, inputs))
            past.last = np.array([window[-1] for window in inputs])
        return found

    def _score(
        self,
        memory: cpu_recall.Memory | None,
        past: ChunkCache | None,
        slots: list[int],
        inputs: list[Integers],
        targets: list[Integers],
    ) -> NDArray[np.float64]:
        if past:
            cache, rows = past.cache, _rows(inputs, slots)
            firsts = np.cumsum([0, *map(len, inputs[:-1])])
            rows[1, firsts], rows[2] = past.last[slots], rows[2] + past.length
        else:
            length = max(map(len, inputs))
            cache, rows = _cache(self.config, len(inputs), length), _rows(inputs, range(len(inputs)))
        numbers, wanted = np.repeat(slots, [len(window) for window in inputs]), np.full(rows.shape[1], -1)
        for end, after in zip(np.cumsum([len(window) for window in inputs]), targets, strict=True):
            wanted[end - len(after) : end] = after
        parts = []
        for at in range(0, len(wanted), _CHUNK):
            hidden, steps = self.run(rows[:, at : at + _CHUNK], cache)
            scored = np.flatnonzero(wanted[at : at + _CHUNK] >= 0)
            tokens, _, positions, _ = rows[:, at + scored]
            hidden, steps = hidden[scored], steps[scored]
            levels = self.levels(hidden, steps)
            found = cpu_head.intervals(levels, wanted[at + scored], self.octave)
            if memory:
                self.recall(memory, numbers[at + scored], positions, tokens, (hidden, steps), levels)
                found[:2] = cpu_head.intervals(levels, wanted[at + scored], self.octave)[:2]
            parts.append(found)
        return np.concatenate(parts, axis=1)

    def ordered_sums(
        self, inputs: Sequence[Integers], order: Integers, past: ChunkCache, cuts: Integers
    ) -> Callable[[], Integers]:
        """See `codec.exact.backend.Backend`; each sequence has a thread."""
        ends = np.cumsum([len(window) for window in inputs])
        edges = np.searchsorted(cuts[0], np.concatenate(([0], ends)))
        out = np.empty(cuts.shape[1], np.int64)
        jobs = []
        for n, (window, end) in enumerate(zip(inputs, ends, strict=True)):
            rows, part = _rows([window], [n]), slice(edges[n], edges[n + 1])
            rows[1, 0], rows[2] = past.last[n], rows[2] + past.length
            own = cuts[:, part] - np.array([[end - len(window)], [0]])
            jobs.append(partial(self._ordered_sums, rows, order, past.cache, own, out[part]))
        threaded(jobs)
        past.length += max(map(len, inputs))
        past.last = np.array([window[-1] for window in inputs])
        return lambda: out

    def _ordered_sums(self, rows: Integers, order: Integers, cache: Cache, cuts: Integers, out: Integers) -> None:
        for at in range(0, rows.shape[1], _CHUNK):
            levels = self.levels(*self.run(rows[:, at : at + _CHUNK], cache))
            begin, end = np.searchsorted(cuts[0], (at, at + _CHUNK))
            row, column = cuts[:, begin:end]
            cpu_head.sums_at(levels, order, self.octave, row - at, column, out[begin:end])

    def recall(
        self,
        memory: cpu_recall.Memory,
        slots: Integers,
        positions: Integers,
        tokens: Integers,
        hidden: Hidden,
        levels: NDArray[np.int32],
    ) -> None:
        """Raise levels by the match model, in place (`codec.backends.cpu.recall.step`)."""
        cpu_recall.step(memory, slots, positions, tokens, *hidden, levels, self.exp2)

    def decoder(self, count: int, data: NDArray[np.uint8], window: int, room: int | None = None) -> HostDecoder:
        """See `codec.exact.backend.Backend`; every slot has room for a whole window."""
        return HostDecoder(self.config, CpuSlots(self, count, window), count, data, compute_threads(), _STEPS)

    def distributions(self, count: int, window: int, order: Integers) -> "CpuDistributions":
        """See `codec.exact.backend.Backend`."""
        return CpuDistributions(self, count, window, order)


class CpuBackend(CpuNetwork):
    """Run a model of this project's own architecture on a processor.

    Raises:
        UnsupportedError: only the reference knows an option of the model, functions are not compiled, or integers have
            more than 16 bits. No quantizer of this package makes such integers.
    """

    def __init__(self, weights: Weights, recall: Recall | None = None):
        check_known(weights.config)
        super().__init__(weights.config, recall)
        check(weights)
        self.network = cpu_network.network(weights)
        name = "tok_emb.weight" if weights.config.tied_head else "lm_head.weight"
        self.head = cpu_network.linear({name: weights.matrices[name]})
        self._embedding = Embedding(weights)
        self._softcap = tables.softcap_table(weights.config.logit_softcap).astype(np.int32)

    def run(self, rows: Integers, cache: Cache) -> Hidden:
        """See `CpuNetwork`; the loops are those of `codec.backends.cpu.network.run`."""
        return network.run(self.network, self._embedding(*rows[:3]), rows[2], rows[3], *cache)

    def levels(self, hidden: NDArray[np.int32], steps: NDArray[np.float64]) -> NDArray[np.int32]:
        """See `CpuNetwork`."""
        return cpu_head.levels(project(self.head, 0, hidden, steps), self._softcap)


class CpuDistributions:
    """Whole distributions behind single tokens, as `codec.exact.backend.Distributions`; a step has one thread."""

    def __init__(self, model: CpuNetwork, count: int, window: int, order: Integers):
        self._model, self._order = model, order
        self._cache = _cache(model.config, count, window)
        self._out = np.empty((count, len(order) + 1), np.int64)

    def step(self, slots: Integers, tokens: Integers, previous: Integers, positions: Integers) -> Integers:
        """See `codec.exact.backend.Distributions`."""
        levels = self._model.levels(*self._model.run(np.array((tokens, previous, positions, slots)), self._cache))
        out = self._out[: len(slots)]
        cpu_head.ordered_sums(levels, self._order, self._model.octave, out)
        return out


class CpuSlots:
    """Decoding slots on a processor, as `codec.exact.backend.Slots`."""

    def __init__(self, model: CpuNetwork, count: int, window: int):
        self._model = model
        self._cache = _cache(model.config, count, window)
        self._memory = model.memory(count, HISTORY)
        self._rows_of = np.arange(count)  # the row of each decoding slot in the cache and the memory

    def step(
        self, slots: Integers, tokens: Integers, previous: Integers, positions: Integers, targets: Integers
    ) -> Integers:
        """See `codec.exact.backend.Slots`; several threads may step different slots."""
        rows = np.array((tokens, previous, positions, self._rows_of[slots]))
        hidden = self._model.run(rows, self._cache)
        levels = self._model.levels(*hidden)
        if self._memory:
            self._model.recall(self._memory, rows[3], positions, tokens, hidden, levels)
        return cpu_head.find(levels, targets, self._model.octave)

    def keep(self, slots: Sequence[int]) -> None:
        """See `codec.exact.backend.Slots`."""
        self._rows_of = self._rows_of[list(slots)]


def _cache(c: AnyConfig, slots: int, window: int, ahead: int = 0) -> Cache:
    """Create empty rings, `ahead` positions longer than a window."""
    first = len(c.schedule), slots, c.num_kv_heads, -(-(window + ahead) // WIDE)
    keys = (*first, c.head_dim // 2, WIDE, 2)
    values = (*first, -(-c.head_dim // COLUMNS), WIDE // 2, COLUMNS, 2)
    return Cache(np.zeros(keys, np.int16), np.zeros(values, np.int16), window)


def _rows(sequences: Sequence[Integers], slots: Sequence[int]) -> Integers:
    """List (token, token before, position, slot) of each token of whole sequences, int64 [4, n]."""
    lengths = [len(sequence) for sequence in sequences]
    tokens = np.concatenate(sequences)
    positions = np.concatenate([np.arange(length) for length in lengths])
    return np.stack((tokens, np.concatenate((tokens[:1], tokens[:-1])), positions, np.repeat(slots, lengths)))
