"""Keys and values on a GPU: of sequences, of documents chunk by chunk, or of lanes that grow by single tokens.

Where a document goes on beyond a window, they are rings: that of position p is at place p % places. Those of lanes are
in pages, of which a lane has as many as it needs (`codec.backends.cuda.page_table`).
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from codec.backends.cuda.attention import CACHE_POSITIONS, POSITIONS, VALUE_PLACES, attend_rows, attend_step
from codec.backends.cuda.matmul import padded
from codec.model.config import AnyConfig


@dataclass(frozen=True)
class Heads:
    """What attention has to know of a model."""

    config: AnyConfig
    padded: int  # D: head_dim padded
    device: torch.device
    page: int = CACHE_POSITIONS  # places of a page of a cache

    @property
    def page_bytes(self) -> int:
        """Of each page of a cache."""
        c = self.config
        return 4 * len(c.schedule) * c.num_kv_heads * self.padded * self.page

    def pages(self, places: int) -> int:
        """That so many places take."""
        return -(-places // self.page)


class Context(Protocol):
    """Where the keys and values of rows are kept, and what their queries may see."""

    rows: Tensor  # int64 [N], 0 to N - 1
    positions: Tensor  # int64 [N], in their documents
    local: Tensor  # int64 [N], in their windows, where documents begin anew behind each
    places: Tensor  # int64 [N], of their keys and values
    slots: Tensor  # int64 [N]
    run: int  # rows that follow one another in a slot, in every block of so many rows

    def store(self, execution: int) -> tuple[Tensor, Tensor]:
        """Keys int8 [2, slots, kv_heads, places, D] and values in blocks (`value_blocks`), to be filled in."""

    def attend(self, execution: int, queries: Tensor, scales: Tensor) -> Tensor:
        """What the queries int8 [2, N, heads, D] mix of them, float64 [N, dim]."""


def value_blocks(places: int, dim: int) -> tuple[int, int, int]:
    """The shape of one head's values: dimensions of VALUE_PLACES places that follow one another, block by block."""
    return places // VALUE_PLACES, dim, VALUE_PLACES


class Cache:
    """Keys int8 [2, pages, kv_heads, S, D] and values in blocks (`value_blocks`) of each execution, by pages of S."""

    def __init__(self, heads: Heads, pages: int):
        self.keys, self.values = [], []
        shape, device = (2, pages, heads.config.num_kv_heads), heads.device
        blocks = value_blocks(heads.page, heads.padded)
        for _ in heads.config.schedule:
            self.keys.append(torch.zeros(*shape, heads.page, heads.padded, dtype=torch.int8, device=device))
            self.values.append(torch.zeros(*shape, *blocks, dtype=torch.int8, device=device))


class Past:
    """What documents that are scored chunk by chunk have had: the same number of tokens each, until they end.

    Keys int8 [2, documents, kv_heads, places, D] and values in blocks (`value_blocks`) of each execution have room for
    a chunk and what it sees. `last` int64 [documents, 1] are their last tokens.
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
    """The next chunks of the first documents of a past, a multiple of POSITIONS long; a `Context`."""

    run = VALUE_PLACES

    def __init__(self, heads: Heads, batch: int, length: int, past: Past):
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
    """Whole sequences, a multiple of POSITIONS long; a `Context`."""

    run = VALUE_PLACES

    def __init__(self, heads: Heads, batch: int, length: int):
        device = heads.device
        self._heads, self._shape = heads, (batch, length)
        self.rows = torch.arange(batch * length, device=device)
        self.positions = self.local = self.places = self.rows % length
        self.slots = torch.div(self.rows, length, rounding_mode="floor")
        shape = (2, batch, heads.config.num_kv_heads)
        self._keys = torch.empty(*shape, length, heads.padded, dtype=torch.int8, device=device)
        self._values = torch.empty(*shape, *value_blocks(length, heads.padded), dtype=torch.int8, device=device)

    def store(self, execution: int) -> tuple[Tensor, Tensor]:
        """See `Context`."""
        return self._keys, self._values

    def attend(self, execution: int, queries: Tensor, scales: Tensor) -> Tensor:
        """See `Context`."""
        batch, length = self._shape
        queries = queries.view(2, batch, length, *queries.shape[2:])
        h = self._heads
        return attend_rows(queries, self._keys, self._values, 0, length, scales, h.config.head_dim)


class Steps:
    """One token of each lane, which sees the last `window` that its pages of a cache hold; a `Context`.

    Its keys and values go to the page that the table has for its place, page 0 where a lane has none. `table` and
    `order` are those of `attend_step`.
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
