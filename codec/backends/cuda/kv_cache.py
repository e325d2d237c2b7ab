"""Keep keys and values on a GPU: for whole sequences, for chunked prefill, and for decoding slots.

For documents longer than a window the caches are rings: position p is at place p % places. The cache of decoding slots
is paged, and a slot has as many pages as its document needs (`codec.backends.cuda.page_table`).
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from codec.backends.cuda.kernels.attention import CACHE_POSITIONS, POSITIONS, VALUE_PLACES, attend_rows, attend_step
from codec.backends.cuda.kernels.matmul import padded
from codec.model.config import AnyConfig


@dataclass(frozen=True)
class Heads:
    """The facts of a model that attention needs."""

    config: AnyConfig
    padded: int  # D: head_dim, padded
    device: torch.device
    page: int = CACHE_POSITIONS  # places of a page of the KV cache

    @property
    def page_bytes(self) -> int:
        """Return the bytes of a page, over all executions."""
        c = self.config
        return 4 * len(c.schedule) * c.num_kv_heads * self.padded * self.page

    def pages(self, places: int) -> int:
        """Return how many pages a number of places takes."""
        return -(-places // self.page)


class Context(Protocol):
    """Keys and values that rows of tokens write and see."""

    rows: Tensor  # int64 [N], 0 to N - 1
    positions: Tensor  # int64 [N], positions in the documents
    local: Tensor  # int64 [N], positions in the windows, where documents begin anew behind each
    places: Tensor  # int64 [N], places of the rows' keys and values in a slot
    slots: Tensor  # int64 [N], slots of the rows' keys and values: sequences, documents or pages
    run: int  # every block of `run` rows is in one slot, at consecutive places

    def store(self, execution: int) -> tuple[Tensor, Tensor]:
        """Return the keys int8 [2, slots, kv_heads, places, D] and the values (`value_blocks`) that kernels fill in."""

    def attend(self, execution: int, queries: Tensor, scales: Tensor) -> Tensor:
        """Compute attention of the rows, after their own keys and values are stored.

        Args:
            execution: the number of the execution in the schedule.
            queries: int8 [2, N, heads, D].
            scales: float64 [heads], from integer scores to levels.

        Returns:
            float64 [N, dim].
        """


def value_blocks(places: int, dim: int) -> tuple[int, int, int]:
    """Return the shape of one head's values: blocks of VALUE_PLACES consecutive places."""
    return places // VALUE_PLACES, dim, VALUE_PLACES


def strides(rows: Tensor) -> tuple[int, int, int]:
    """Return the strides of slots, heads and places: keys int8 [2, slots, heads, places, D].

    The stride of places is 0 in queries int8 [2, N, heads, D], which have no places.
    """
    return rows.stride(1), rows.stride(2), rows.stride(3) if rows.dim() == 5 else 0


class Cache:
    """The paged KV cache: for each execution keys int8 [2, pages, kv_heads, S, D] and values (`value_blocks`)."""

    def __init__(self, heads: Heads, pages: int):
        self.keys, self.values = [], []
        shape, device = (2, pages, heads.config.num_kv_heads), heads.device
        blocks = value_blocks(heads.page, heads.padded)
        for _ in heads.config.schedule:
            self.keys.append(torch.zeros(*shape, heads.page, heads.padded, dtype=torch.int8, device=device))
            self.values.append(torch.zeros(*shape, *blocks, dtype=torch.int8, device=device))

    def clear(self) -> None:
        """Set all keys and values to zero."""
        for part in (*self.keys, *self.values):
            part.zero_()


class ChunkCache:
    """Keys and values of the chunks scored so far, for documents that advance together.

    All documents have had equally many tokens, `length`, until one ends. Each execution has keys int8 [2, documents,
    kv_heads, places, D] and values (`value_blocks`), with room for a chunk and the positions that the chunk sees.
    `last`, int64 [documents, 1], are the documents' last tokens.
    """

    def __init__(self, heads: Heads, documents: int, window: int):
        self.window, self.length, self.places = window, 0, 2 * padded(window, POSITIONS)
        shape, device = (2, documents, heads.config.num_kv_heads), heads.device
        self.last = torch.zeros(documents, 1, dtype=torch.int64, device=device)
        self.keys, self.values = [], []
        blocks = value_blocks(self.places, heads.padded)
        for _ in heads.config.schedule:
            self.keys.append(torch.zeros(*shape, self.places, heads.padded, dtype=torch.int8, device=device))
            self.values.append(torch.zeros(*shape, *blocks, dtype=torch.int8, device=device))


class Chunks:
    """A `Context` of the next chunks, a multiple of POSITIONS long, of the first documents of a `ChunkCache`."""

    run = VALUE_PLACES

    def __init__(self, heads: Heads, batch: int, length: int, past: ChunkCache):
        self._heads, self._shape, self._past, self._begin = heads, (batch, length), past, past.length
        self.rows = torch.arange(batch * length, device=heads.device)
        self.positions = self.rows % length + past.length
        self.local = self.positions % past.window
        self.places = self.positions % past.places
        self.slots = torch.div(self.rows, length, rounding_mode="floor")

    def store(self, execution: int) -> tuple[Tensor, Tensor]:
        """See `Context`."""
        batch, _ = self._shape
        return self._past.keys[execution][:, :batch], self._past.values[execution][:, :batch]

    def attend(self, execution: int, queries: Tensor, scales: Tensor) -> Tensor:
        """See `Context`."""
        h, (keys, values) = self._heads, self.store(execution)
        queries = queries.view(2, *self._shape, *queries.shape[2:])
        window, since = self._past.window, 0
        if h.config.restarts:  # windows are multiples of chunks
            since = self._begin // window * window
        return attend_rows(queries, keys, values, self._begin, window, scales, h.config.head_dim, since)


class Sequences:
    """A `Context` of whole sequences one behind another, each from a multiple of POSITIONS on.

    Args:
        heads: of the model.
        begins: int64 [N / POSITIONS], for each block of POSITIONS rows the first row of its sequence.
    """

    run = VALUE_PLACES

    def __init__(self, heads: Heads, begins: Tensor):
        device, count = heads.device, len(begins) * POSITIONS
        self._heads, self._begins = heads, begins
        self.rows = self.places = torch.arange(count, device=device)
        self.positions = self.local = (self.rows.view(-1, POSITIONS) - begins[:, None]).flatten()
        self.slots = torch.zeros_like(self.rows)
        shape = (2, 1, heads.config.num_kv_heads)
        self._keys = torch.empty(*shape, count, heads.padded, dtype=torch.int8, device=device)
        self._values = torch.empty(*shape, *value_blocks(count, heads.padded), dtype=torch.int8, device=device)

    def store(self, execution: int) -> tuple[Tensor, Tensor]:
        """See `Context`."""
        return self._keys, self._values

    def attend(self, execution: int, queries: Tensor, scales: Tensor) -> Tensor:
        """See `Context`."""
        h, count = self._heads, len(self.rows)
        return attend_rows(
            queries[:, None], self._keys, self._values, 0, count, scales, h.config.head_dim, self._begins
        )


class Steps:
    """A `Context` of one token in each decoding slot, which sees the slot's last `window` positions.

    The page table says to which page the token's key and value go. A slot without a page writes to page 0, which no
    slot owns. `table` and `order` are those of `attend_step`.
    """

    run = 1

    def __init__(self, heads: Heads, cache: Cache, positions: Tensor, table: Tensor, order: Tensor, window: int):
        self._heads, self._cache, self.positions, self._table, self._order = heads, cache, positions, table, order
        place = self.local = positions % window
        self._last = place if heads.config.restarts else positions.clamp(max=window - 1)
        page = torch.div(place, heads.page, rounding_mode="floor")
        self.slots, self.places = table.gather(1, page[:, None])[:, 0], place % heads.page
        self.rows = torch.arange(len(table), device=table.device)

    def store(self, execution: int) -> tuple[Tensor, Tensor]:
        """See `Context`."""
        return self._cache.keys[execution], self._cache.values[execution]

    def attend(self, execution: int, queries: Tensor, scales: Tensor) -> Tensor:
        """See `Context`."""
        keys, values = self.store(execution)
        h = self._heads
        return attend_step(queries, keys, values, self._last, self._table, self._order, scales, h.config.head_dim)
