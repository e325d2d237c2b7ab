"""Run the exact models of all families on rows of tokens, and keep the keys and values that the rows see.

Rows are whole sequences, single tokens of decoding slots, or chunks of documents (chunked prefill).
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from codec.model.config import AnyConfig


@dataclass
class Cache:
    """Keys and values of decoding slots, for each execution float64 [slots, kv_heads, size, head_dim].

    The last dimension but one is a ring: position p is at index p % size, and overwrites a position that has left the
    window. The order of keys does not change sums of integers.
    """

    keys: list[Tensor]
    values: list[Tensor]
    restarts: bool = False  # whether a sequence begins anew behind each window


@dataclass
class ChunkCache:
    """Keys and values of the chunks run so far, for documents that advance together.

    All documents have had equally many tokens until one ends.
    """

    window: int  # how many tokens a token sees, itself included
    length: int  # tokens of each document so far
    last: Tensor  # int64 [documents, 1], the documents' last tokens
    keys: list[Tensor]  # of the last window - 1 tokens; each execution: float64 [documents, kv_heads, tokens, head_dim]
    values: list[Tensor]
    restarts: bool = False  # whether a document begins anew behind each window


class Context(Protocol):
    """Keys and values that rows of tokens see.

    Query t of row b sees the keys from first[b, t] to last[b, t].
    """

    positions: Tensor  # int64 [B, T]
    places: Tensor  # int64 [B, T]: positions since the last new beginning, where documents begin anew behind windows
    previous: Tensor | None  # int64 [B, 1], the tokens before the rows; None if the rows begin documents
    first: Tensor  # int64 [B, T]
    last: Tensor  # int64 [B, T]

    def take(self, execution: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store the rows' own keys and values, and return all keys and values that the rows see.

        Args:
            execution: the number of the execution in the schedule.
            keys: float64 [B, kv_heads, T, head_dim], of the rows.
            values: float64 [B, kv_heads, T, head_dim], of the rows.

        Returns:
            Keys and values, float64 [B, kv_heads, S, head_dim].
        """


class Sequences:
    """A `Context` of whole sequences."""

    previous: Tensor | None = None

    def __init__(self, tokens: Tensor):
        own = torch.arange(tokens.shape[1], device=tokens.device).expand(tokens.shape)
        self.positions = self.places = self.last = own
        self.first = torch.zeros_like(own)

    def take(self, execution: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """See `Context`."""
        return keys, values


class Steps:
    """A `Context` of one token in every decoding slot of a cache.

    Args:
        previous: int64 [slots], the token before each slot's token.
        positions: int64 [slots], the positions of the slots' tokens.
        cache: the keys and values of the slots, to which the tokens' own are added.
    """

    def __init__(self, previous: Tensor, positions: Tensor, cache: Cache):
        self.previous: Tensor | None = previous[:, None]
        self.positions, self._cache = positions[:, None], cache
        window = cache.keys[0].shape[2]
        self.places = self.positions % window
        self.last = self.places if cache.restarts else self.positions.clamp(max=window - 1)
        self.first = torch.zeros_like(self.last)
        self._at = torch.arange(len(positions), device=positions.device), slice(None), positions % window

    def take(self, execution: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """See `Context`."""
        self._cache.keys[execution][self._at] = keys[:, :, 0]
        self._cache.values[execution][self._at] = values[:, :, 0]
        return self._cache.keys[execution], self._cache.values[execution]


class Chunks:
    """A `Context` of the next chunks of documents that advance together.

    Args:
        tokens: int64 [B, T]. A document that goes on after this chunk has T tokens in the chunk; others are padded.
        past: the chunks before. The first B documents are those of the tokens; their chunks are added.
    """

    def __init__(self, tokens: Tensor, past: ChunkCache):
        batch, length = tokens.shape
        self._past, self._batch = past, batch
        own = torch.arange(length, device=tokens.device).expand(tokens.shape)
        self.positions, self.last = own + past.length, own + min(past.length, past.window - 1)
        self.places = self.positions % past.window
        self.first = self.last - (self.places if past.restarts else past.window - 1)
        self.previous = past.last[:batch] if past.length else None
        past.last, past.length = tokens[:, -1:], past.length + length

    def take(self, execution: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """See `Context`."""
        keys = torch.cat((self._past.keys[execution][: self._batch], keys), 2)
        values = torch.cat((self._past.values[execution][: self._batch], values), 2)
        begin = max(0, keys.shape[2] - (self._past.window - 1))
        self._past.keys[execution], self._past.values[execution] = keys[:, :, begin:], values[:, :, begin:]
        return keys, values


class ExactNetwork(ABC):
    """Compute a network in fixed point: integers that are the same for every batch shape, thread count and device.

    Attributes:
        config: the model's shape.
        device: where it computes.
    """

    config: AnyConfig
    device: torch.device

    @abstractmethod
    def _run(self, tokens: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """Compute the last hidden state of rows of tokens [B, T], as `forward` returns it."""

    @abstractmethod
    def levels(self, hidden: Tensor, step: Tensor) -> Tensor:
        """Compute logits in 1/LEVELS_PER_BIT bit, int64 [..., V], from what `forward` or `step` returned."""

    def new_cache(self, slots: int, window: int) -> Cache:
        """Create an empty KV cache of decoding slots.

        Args:
            slots: how many slots there are.
            window: how many tokens a token sees, itself included.
        """
        return Cache(self._caches(slots, window), self._caches(slots, window), self.config.restarts)

    def new_past(self, documents: int, window: int) -> ChunkCache:
        """Create an empty KV cache for chunked prefill.

        Args:
            documents: how many documents there are.
            window: how many tokens a token sees, itself included.
        """
        last = torch.zeros(documents, 1, dtype=torch.int64, device=self.device)
        keys, values = (self._caches(documents, 0) for _ in range(2))
        return ChunkCache(window, 0, last, keys, values, self.config.restarts)

    def _caches(self, count: int, places: int) -> list[Tensor]:
        shape = (count, self.config.num_kv_heads, places, self.config.head_dim)
        return [torch.zeros(shape, dtype=torch.float64, device=self.device) for _ in self.config.schedule]

    @torch.inference_mode()
    def forward(self, tokens: Tensor, past: ChunkCache | None = None) -> tuple[Tensor, Tensor]:
        """Run whole sequences from position 0, or the next chunks of documents.

        Args:
            tokens: int64 [B, T]. Without `past`, T <= window. With `past`, a document that goes on after this chunk has
                T tokens in the chunk; others are padded.
            past: the KV cache of the chunks before, or None for whole sequences. The first B documents are those of the
                tokens; their chunks are added.

        Returns:
            The snapped, normalised last hidden state (X float64 [B, T, dim], step float64 [B, T, 1]), for `levels`.
        """
        return self._run(tokens, Chunks(tokens, past) if past else Sequences(tokens))

    @torch.inference_mode()
    def step(self, tokens: Tensor, previous: Tensor, positions: Tensor, cache: Cache) -> tuple[Tensor, Tensor]:
        """Run one more token in every decoding slot of a cache.

        Args:
            tokens: int64 [B], the token of each slot.
            previous: int64 [B], the token before each token (any value at position 0).
            positions: int64 [B], the positions of the tokens.
            cache: the keys and values of each slot's earlier tokens that are within the window. The tokens' own are
                added.

        Returns:
            As `forward`, with T = 1.
        """
        return self._run(tokens[:, None], Steps(previous, positions, cache))
