"""Decode many documents side by side on a GPU: model, search and range decoder in one CUDA graph, without the host.

The graph is one step of all decoding slots. The host looks at the decoded tokens after STEPS steps, while the next
steps run. A slot becomes idle when its document ends. The host notices at the next look, and reloads the slot for the
steps launched after that look. A slot that needs a page of the KV cache when no page is free waits.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext

import numpy as np
import torch
from numpy.typing import NDArray

from codec.backends.cuda.kernels.head import SlotState
from codec.backends.cuda.kv_cache import Cache, Steps
from codec.backends.cuda.network import CudaNetwork
from codec.backends.cuda.page_table import Pages
from codec.backends.cuda.recall import Batch
from codec.backends.cuda.streams import side_stream
from codec.devices import fetch, send
from codec.entropy import range_coder
from codec.exact.backend import Integers, States

STEPS = 4
"""Steps between two looks of the host.

An idle slot wastes half of these steps on average, and the steps that are already launched. With 2,048 slots, a look
took the host 3 ms, and so many steps took an H200 40 ms.
"""


class CudaSlots:
    """Decoding slots on a GPU; a `codec.exact.backend.Decoder`."""

    ahead = 1

    def __init__(self, model: CudaNetwork, count: int, data: NDArray[np.uint8], window: int, room: int | None = None):
        self._model, self._window, device = model, window, model.device
        self._data, self._host_data = torch.from_numpy(np.append(data, np.uint8(0))).to(device), data
        most = model.heads.pages(window)  # pages of a slot
        pages = count * most
        if room is not None:
            pages = max(most, min(pages, (room - count * model.memory_bytes) // model.heads.page_bytes))
        self._cache, self._pages = Cache(model.heads, pages + 1), Pages(count, most, pages)
        self._memory = model.new_memory(count, 1, count)
        self._begins, self._positions = np.zeros((2, count), np.int64)  # positions as of the last look
        self._flying = 0  # launches that the host has not waited for
        slots, none = torch.arange(count, device=device), torch.zeros(8, count, dtype=torch.int64, device=device)
        self._take(slots, none[:4], none[4:7], none[7])

    def _take(self, slots: torch.Tensor, inputs: torch.Tensor, states: torch.Tensor, ends: torch.Tensor) -> None:
        """Set up the tensors of a step over the slots with these numbers. The first launch captures the step."""
        self._slots = slots
        history = torch.zeros(STEPS, len(slots), dtype=torch.int64, device=slots.device)
        inputs, states, ends = (part.contiguous() for part in (inputs, states, ends))  # as kernels need
        self._state = SlotState(inputs, states, self._data, ends, history, history.new_zeros(1))
        self._order = torch.arange(len(slots), device=slots.device)
        self._table = self._send(self._pages.table).clone()  # on a processor the tensor would share the table's memory
        self._graph: torch.cuda.CUDAGraph | None = None
        self._ready = False

    def load(self, slots: Sequence[int], begins: Integers, ends: Integers) -> None:
        """See `codec.exact.backend.Decoder`."""
        states = np.zeros((len(slots), 3), np.uint64)
        for state, begin, end in zip(states, begins, ends, strict=True):
            range_coder.start_decoder(state, self._host_data[begin:end])
        device_states = states.astype(np.int64).T
        device_states[2] += begins
        index, on_device = self._send(np.array(slots)), self._state
        on_device.states[:, index] = self._send(device_states)
        on_device.ends[index] = self._send(ends)
        begin = self._model.config.begin
        on_device.inputs[:, index] = self._send(np.array([[begin], [begin], [0], [1]])).expand(4, len(slots))
        self._begins[list(slots)], self._positions[list(slots)] = begins, 0
        self._pages.begin(slots)

    def _send(self, values: Integers) -> torch.Tensor:
        return send(values, self._model.device)

    def _reach(self) -> None:
        """Give slots the pages that they may need until the end of the next launch."""
        ahead = STEPS * (self._flying + 1)
        places = np.minimum(self._positions + ahead, self._window)
        if self._pages.reach(-(-places // self._model.heads.page)):
            self._table.copy_(self._send(self._pages.table))

    def launch(self) -> Callable[[], tuple[Integers, States]]:
        """See `codec.exact.backend.Decoder`."""
        self._reach()
        if not self._ready:
            self._prepare()
        self._state.counter.zero_()
        self._order.copy_(self._state.inputs[2].argsort(descending=True))
        for _ in range(STEPS):
            if self._graph is None:
                self._step()
            else:
                self._graph.replay()
        symbols, states, begins = fetch(self._state.history), fetch(self._state.states), self._begins.copy()
        self._flying += 1

        def wait() -> tuple[Integers, States]:
            found, decoded = states().T.copy(), symbols()
            found[:, 2] -= begins
            self._flying -= 1
            self._positions += (decoded >= 0).sum(0)
            self._pages.end(np.flatnonzero((decoded == self._model.config.end).any(0)).tolist())
            return decoded, found.astype(np.uint64)

        return wait

    def _prepare(self) -> None:
        """Compile the step by running a step and undoing its effect; on a GPU, capture the step in a graph."""
        self._state.counter.zero_()  # the counter says in which row of the history a step writes
        changed = (self._state.inputs, self._state.states, *(self._memory.state if self._memory else ()))
        kept = [t.clone() for t in changed]
        on_gpu = self._model.device.type == "cuda"
        with side_stream() if on_gpu else nullcontext():
            self._step()
        for tensor, before in zip(changed, kept, strict=True):
            tensor.copy_(before)
        if on_gpu:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                self._step()
            self._graph = graph
        self._ready = True

    @torch.inference_mode()
    def _step(self) -> None:
        m = self._model
        tokens, previous, positions, stay = self._state.inputs
        first = m.start(tokens[:, None], previous[:, None], positions[:, None])
        context = Steps(m.heads, self._cache, positions, self._table, self._order, self._window)
        runs = stay * (context.slots > 0)
        operands, steps = m.run(first, context)
        measures = None
        if self._memory:
            batch = Batch(self._slots, positions, runs, context.rows, context.rows)
            self._memory.take(batch, tokens, operands[-1], steps[-1])
            measures = self._memory.measure(batch, 1)
        m.head.decode(m.products(operands[0]), steps[0], self._state, runs, measures)
        self._state.counter.add_(1)

    def keep(self, slots: Sequence[int]) -> None:
        """See `codec.exact.backend.Decoder`."""
        index, state = self._send(np.array(slots)), self._state
        self._begins, self._positions = self._begins[list(slots)], self._positions[list(slots)]
        self._pages.keep(slots)
        self._take(self._slots[index], state.inputs[:, index], state.states[:, index], state.ends[index])
