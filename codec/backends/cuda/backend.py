"""Score and decode on a GPU: a `codec.exact.backend.Backend` of Triton kernels.

`codec.backends.select` compares the backend with the reference before the backend is used.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from codec.backends.cuda.distributions import CudaDistributions
from codec.backends.cuda.kernels.attention import POSITIONS
from codec.backends.cuda.kernels.matmul import padded
from codec.backends.cuda.kv_cache import ChunkCache
from codec.backends.cuda.network import CudaNetwork
from codec.backends.cuda.recall import Batch, Memory
from codec.backends.cuda.slots import CudaSlots
from codec.devices import fetch, send
from codec.exact.backend import Backend, Decoder, Integers

_HEAD_ROWS, _HEAD_ENTRIES = 8192, 1 << 27  # rows and entries of logits in memory at once


class CudaBackend(CudaNetwork, Backend):
    """A model on a GPU, as a `codec.exact.backend.Backend`.

    Raises:
        UnsupportedError: the kernels do not compute the model's options or integers.
    """

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
        length = padded(max(map(len, inputs)), POSITIONS)
        tokens = np.zeros((len(inputs), length), np.int64)
        for row, window in enumerate(inputs):
            tokens[row, : len(window)] = window
        ends = [row * length + len(window) for row, window in enumerate(inputs)]
        rows = np.concatenate([np.arange(end - len(t), end) for end, t in zip(ends, targets, strict=True)])
        wanted = send(np.stack((rows, np.concatenate(targets))), self.device)
        begin = past.length if past else 0
        on_device = send(tokens, self.device)
        operands, all_steps = self.forward(on_device, past=past)
        operand, steps, measures = operands[0], all_steps[0], None
        if memory := memory or self.memory(len(inputs), length):
            batch = Batch.of(inputs, targets, length, begin, self.device)
            memory.take(batch, on_device, operands[-1], all_steps[-1])
        out = torch.empty(3, len(rows), dtype=torch.float64, device=self.device)
        for at in range(0, len(rows), self.head_rows):
            index, symbols = wanted[:, at : at + self.head_rows]
            part = operand.new_empty(len(operand), padded(len(index)), operand.shape[2])
            part[:, : len(index)] = operand[:, index]
            if memory:
                measures = memory.measure(batch, max(map(len, targets)), at)
            found = self.head.intervals(self.products(part), steps[index], symbols, measures)
            for n, values in enumerate(found):
                out[n, at : at + len(index)] = values
        return fetch(out)

    def ordered_sums(
        self, inputs: Sequence[Integers], order: Integers, past: ChunkCache, cuts: Integers
    ) -> Callable[[], Integers]:
        """See `codec.exact.backend.Backend`."""
        length = padded(max(map(len, inputs)), POSITIONS)
        tokens = np.zeros((len(inputs), length), np.int64)
        for row, window in enumerate(inputs):
            tokens[row, : len(window)] = window
        rows = np.concatenate([row * length + np.arange(len(window)) for row, window in enumerate(inputs)])
        wanted, symbols, entries = (send(values, self.device) for values in (rows, order, cuts))
        operands, steps = self.forward(send(tokens, self.device), past=past)
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
