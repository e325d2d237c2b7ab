"""Whole distributions behind single tokens on a GPU: one graph a step, whose results are copied to the host."""

import torch

from codec.backends.cuda.kv_cache import Cache, Steps
from codec.backends.cuda.network import CudaNetwork
from codec.backends.cuda.streams import side_stream
from codec.exact.backend import Integers


class CudaDistributions:
    """See `codec.exact.backend.Distributions`: every step runs all slots, idle ones at position 0.

    Every slot has the pages of a whole window. The step is captured when the object is made, so that threads may then
    use several objects side by side. Tokens and results pass through buffers of pinned memory.
    """

    def __init__(self, model: CudaNetwork, count: int, window: int, order: Integers):
        self._model, device = model, model.device
        pages, self._on_gpu = model.heads.pages(window), device.type == "cuda"
        self._cache = Cache(model.heads, count * pages + 1)
        self._table = torch.arange(1, count * pages + 1, device=device).view(count, pages)
        self._slots, self._window = torch.arange(count, device=device), window
        self._order = torch.from_numpy(order).to(device)
        self._inputs = torch.zeros(3, count, dtype=torch.int64, device=device)  # token, the one before, position
        self._sums = torch.empty(count, len(order) + 1, dtype=torch.int64, device=device)
        self._host_inputs, self._host_sums = (
            torch.zeros(part.shape, dtype=torch.int64, pin_memory=self._on_gpu) for part in (self._inputs, self._sums)
        )
        self._graph = self._captured() if self._on_gpu else None

    def _captured(self) -> torch.cuda.CUDAGraph:
        """Capture the step as a graph, and leave the cache as empty as it was: capturing runs a step at position 0."""
        with side_stream():
            self._run()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._run()
        self._cache.clear()
        return graph

    @torch.inference_mode()
    def _run(self) -> None:
        m = self._model
        tokens, previous, positions = self._inputs
        first = m.start(tokens[:, None], previous[:, None], positions[:, None])
        context = Steps(m.heads, self._cache, positions, self._table, self._slots, self._window)
        operands, steps = m.run(first, context)
        m.head.ordered_sums(m.products(operands[0]), steps[0], self._order, self._sums)

    def step(self, slots: Integers, tokens: Integers, previous: Integers, positions: Integers) -> Integers:
        """See `codec.exact.backend.Distributions`."""
        inputs = self._host_inputs.numpy()
        inputs[:] = 0
        inputs[:, slots] = tokens, previous, positions
        self._inputs.copy_(self._host_inputs, non_blocking=True)
        if self._graph is None:
            self._run()
        else:
            self._graph.replay()
        self._host_sums.copy_(self._sums, non_blocking=True)
        if self._on_gpu:
            done = torch.cuda.Event()
            done.record()
            done.synchronize()
        found = self._host_sums.numpy()
        return found if len(slots) == len(found) else found[slots]
