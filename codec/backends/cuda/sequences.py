"""Score whole sequences on a GPU: one behind another in one row of tokens, so that none is padded to the longest.

A large batch runs as one CUDA graph. Its hundreds of kernels, launched one by one, would keep the interpreter from the
threads that prepare the next texts.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from codec.backends.cuda.kernels.attention import POSITIONS
from codec.backends.cuda.kernels.matmul import padded
from codec.backends.cuda.streams import side_stream
from codec.devices import fetch, send
from codec.exact.backend import Integers
from codec.numerics.runs import runs

GRAPH_ROWS = (8192, 65_536)
"""Rows of the batches that are captured. A batch of more than half as many rows is filled up; others are launched."""


@dataclass(frozen=True)
class Layout:
    """Sequences one behind another, each from a multiple of POSITIONS on."""

    tokens: Integers  # int64 [N], N a multiple of `padded`'s unit
    begins: Integers  # int64 [N / POSITIONS], for each block of rows the first row of its sequence
    firsts: Integers  # int64 [sequences], the first row of each
    rows: Integers  # int64 [S], of the scored tokens

    @classmethod
    def of(cls, inputs: Sequence[Integers], targets: Sequence[Integers], on_gpu: bool) -> "Layout":
        """Lay out inputs, of each of which the last tokens are scored, as many as it has targets.

        On a GPU, N is one of GRAPH_ROWS where so many rows are more than half needed.
        """
        counts = np.array([len(tokens) for tokens in inputs])
        sizes = -(-counts // POSITIONS) * POSITIONS
        ends = np.cumsum(sizes)
        firsts, used = ends - sizes, int(ends[-1])
        fitting = [rows for rows in GRAPH_ROWS if rows // 2 < used <= rows]
        count = fitting[0] if fitting and on_gpu else padded(used)
        tokens = np.zeros(count, np.int64)
        begins = np.arange(0, count, POSITIONS)  # a block behind the last sequence sees itself
        begins[: used // POSITIONS] = np.repeat(firsts, sizes // POSITIONS)
        tokens[runs(firsts, counts)] = np.concatenate(inputs)
        scored = np.array([len(after) for after in targets])
        return cls(tokens, begins, firsts, runs(firsts + counts - scored, scored))


class Scorer(Protocol):
    """Score rows of tokens on a device."""

    device: torch.device

    def score_rows(self, tokens: Tensor, begins: Tensor, rows: Tensor, symbols: Tensor, out: Tensor) -> None:
        """Fill `out` float64 [3, S] with the intervals of `symbols` behind the rows `rows` int64 [S]."""


class Captured:
    """The scores of all rows of a batch as a CUDA graph.

    Args:
        model: runs the rows.
        count: how many rows a batch has.
        pool: of memory, by `torch.cuda.graph_pool_handle`, shared with graphs of which none runs at the same time.
    """

    def __init__(self, model: Scorer, count: int, pool: Any):
        self._rows = torch.arange(count, device=model.device)
        self._tokens, self._symbols = torch.zeros(2, count, dtype=torch.int64, device=model.device)
        self._begins = self._rows[::POSITIONS].clone()
        self._out = torch.zeros(3, count, dtype=torch.float64, device=model.device)
        given = (self._tokens, self._begins, self._rows, self._symbols, self._out)
        with side_stream():
            model.score_rows(*given)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, pool=pool):
            model.score_rows(*given)

    def launch(self, layout: Layout, targets: Integers) -> Callable[[], NDArray[np.float64]]:
        """Start a batch; return what waits for the intervals float64 [3, S] of the scored rows."""
        symbols = np.zeros(len(layout.tokens), np.int64)
        symbols[layout.rows] = targets
        for there, values in ((self._tokens, layout.tokens), (self._begins, layout.begins), (self._symbols, symbols)):
            there.copy_(send(values, there.device))
        self._graph.replay()
        found = fetch(self._out)
        return lambda: found()[:, layout.rows]
