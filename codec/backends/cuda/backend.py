"""Score and decode on a GPU: a `codec.exact.backend.Backend` of Triton kernels.

`codec.backends.select` compares the backend with the reference before the backend is used.
"""

from collections.abc import Callable, Sequence
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from codec.backends.cuda.distributions import CudaDistributions
from codec.backends.cuda.kernels.attention import POSITIONS
from codec.backends.cuda.kernels.matmul import padded
from codec.backends.cuda.kv_cache import ChunkCache
from codec.backends.cuda.network import CudaNetwork
from codec.backends.cuda.recall import Batch, Measures, Memory
from codec.backends.cuda.sequences import GRAPH_ROWS, Captured, Layout
from codec.backends.cuda.slots import CudaSlots
from codec.devices import fetch, send
from codec.exact.backend import Backend, Decoder, Integers

_HEAD_ROWS, _HEAD_ENTRIES = 8192, 1 << 27  # rows and entries of logits in memory at once


class CudaBackend(CudaNetwork, Backend):
    """A model on a GPU, as a `codec.exact.backend.Backend`.

    Raises:
        UnsupportedError: the kernels do not compute the model's options or integers.
    """

    packs = True

    @cached_property
    def _graphs(self) -> dict[int, Captured]:
        return {}

    @cached_property
    def _pool(self) -> Any:
        return torch.cuda.graph_pool_handle()

    @property
    def head_rows(self) -> int:
        """Rows of logits in memory at once."""
        return max(1, min(_HEAD_ROWS, _HEAD_ENTRIES // self.config.vocab_size))

    def slot_bytes(self, tokens: int) -> int:
        """See `codec.exact.backend.Backend`."""
        return self.memory_bytes + self.heads.pages(min(tokens, self.config.window)) * self.heads.page_bytes

    def memory(self, documents: int, tokens: int) -> Memory | None:
        """See `codec.exact.backend.Backend`."""
        fresh = min(tokens, padded(self.config.window, POSITIONS))
        return self.new_memory(documents, fresh, min(self.head_rows, documents * tokens), tokens)

    def past(self, documents: int, window: int) -> ChunkCache:
        """See `codec.exact.backend.Backend`."""
        return ChunkCache(self.heads, documents, window)

    def score(
        self,
        inputs: Sequence[Integers],
        targets: Sequence[Integers],
        memory: Memory | None = None,
        past: ChunkCache | None = None,
    ) -> NDArray[np.float64]:
        """See `codec.exact.backend.Backend`."""
        return self.launch(inputs, targets, memory, past)()

    def launch(
        self,
        inputs: Sequence[Integers],
        targets: Sequence[Integers],
        memory: Memory | None = None,
        past: ChunkCache | None = None,
    ) -> Callable[[], NDArray[np.float64]]:
        """See `codec.exact.backend.Backend`."""
        symbols = np.concatenate(targets)
        if past:
            tokens, scored, starts = _side_by_side(inputs, targets)
            begin, on_device = past.length, send(tokens, self.device)
            hidden = self.run_chunks(on_device, past)
        else:
            layout = Layout.of(inputs, targets, self.device.type == "cuda")
            memory = memory or self.memory(len(inputs), padded(max(map(len, inputs)), POSITIONS))
            if memory is None and len(layout.tokens) in GRAPH_ROWS and self.device.type == "cuda":
                return self._captured(len(layout.tokens)).launch(layout, symbols)
            scored, starts = layout.rows, layout.firsts
            begin, on_device = 0, send(layout.tokens, self.device)
            hidden = self.run_sequences(on_device, send(layout.begins, self.device))
        out = torch.empty(3, len(symbols), dtype=torch.float64, device=self.device)
        measure = None
        if memory:
            batch, most = Batch.of(inputs, targets, starts, begin, self.device), max(map(len, targets))
            memory.take(batch, on_device, hidden[0][-1], hidden[1][-1])
            measure = partial(memory.measure, batch, most)
        rows, wanted = send(np.stack((scored, symbols)), self.device)
        self._intervals(hidden, rows, wanted, out, measure)
        return fetch(out)

    def score_rows(self, tokens: Tensor, begins: Tensor, rows: Tensor, symbols: Tensor, out: Tensor) -> None:
        """See `codec.backends.cuda.sequences.Scorer`."""
        self._intervals(self.run_sequences(tokens, begins), rows, symbols, out)

    def _captured(self, rows: int) -> Captured:
        if rows not in self._graphs:
            self._graphs[rows] = Captured(self, rows, self._pool)
        return self._graphs[rows]

    @torch.inference_mode()
    def _intervals(
        self,
        hidden: tuple[Tensor, Tensor],
        rows: Tensor,
        symbols: Tensor,
        out: Tensor,
        measure: Callable[[int], Measures] | None = None,
    ) -> None:
        """Fill `out` float64 [3, S] with the intervals of symbols behind rows of what `run` returns."""
        operand, steps = hidden[0][0], hidden[1][0]
        for at in range(0, len(rows), self.head_rows):
            index = rows[at : at + self.head_rows]
            part = operand.new_empty(len(operand), padded(len(index)), operand.shape[2])
            part[:, : len(index)] = operand[:, index]
            measures = measure(at) if measure else None
            found = self.head.intervals(self.products(part), steps[index], symbols[at : at + self.head_rows], measures)
            for n, values in enumerate(found):
                out[n, at : at + len(index)] = values

    def ordered_sums(
        self, inputs: Sequence[Integers], order: Integers, past: ChunkCache, cuts: Integers
    ) -> Callable[[], Integers]:
        """See `codec.exact.backend.Backend`."""
        tokens, rows, _ = _side_by_side(inputs, inputs)
        wanted, symbols, entries = (send(values, self.device) for values in (rows, order, cuts))
        operands, steps = self.run_chunks(send(tokens, self.device), past)
        operand, step = operands[0], steps[0]
        out = torch.empty(cuts.shape[1], dtype=torch.int64, device=self.device)
        sums = torch.empty(min(self.head_rows, len(rows)), len(order) + 1, dtype=torch.int64, device=self.device)
        for at in range(0, len(rows), self.head_rows):
            index = wanted[at : at + self.head_rows]
            part = operand.new_empty(len(operand), padded(len(index)), operand.shape[2])
            part[:, : len(index)] = operand[:, index]
            self.head.ordered_sums(self.products(part), step[index], symbols, sums[: len(index)])
            begin, end = np.searchsorted(cuts[0], (at, at + len(index)))
            row, column = entries[:, begin:end]
            out[begin:end] = sums[row - at, column]
        return fetch(out)

    def distributions(self, count: int, window: int, order: Integers) -> CudaDistributions:
        """See `codec.exact.backend.Backend`."""
        return CudaDistributions(self, count, window, order)

    def decoder(self, count: int, data: NDArray[np.uint8], window: int, room: int | None = None) -> Decoder:
        """See `codec.exact.backend.Backend`."""
        return CudaSlots(self, count, data, window, room)


def _side_by_side(inputs: Sequence[Integers], targets: Sequence[Integers]) -> tuple[Integers, Integers, Integers]:
    """Lay out inputs as rows of one length: tokens int64 [B, T], rows of the scored tokens [S] and of first tokens [B].

    As many tokens at the end of each input are scored as it has targets.
    """
    length = padded(max(map(len, inputs)), POSITIONS)
    tokens = np.zeros((len(inputs), length), np.int64)
    for row, sequence in enumerate(inputs):
        tokens[row, : len(sequence)] = sequence
    starts = np.arange(len(inputs)) * length
    ends = starts + list(map(len, inputs))
    rows = [np.arange(end - len(after), end) for end, after in zip(ends.tolist(), targets, strict=True)]
    return tokens, np.concatenate(rows), starts
