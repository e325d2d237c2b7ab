"""Keep keys and values of the exact model: for whole sequences, for decoding slots, and for chunked prefill."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass
class Cache:
    """Keys and values of decoding slots, for each execution float64 [slots, kv_heads, size, head_dim].

    The last dimension but one is a ring: position p is at index p % size, and overwrites a position that
    has left the window. The
    order of keys does not change sums of integers.
    """

    keys: list[Tensor]
    values: list[Tensor]


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


class Context(Protocol):
    """Keys and values that rows of tokens see.

    Query t of row b sees the keys s with last[b, t] - window < s <= last[b, t].
    """

    positions: Tensor  # int64 [B, T]
    previous: Tensor | None  # int64 [B, 1], the tokens before the rows; None if the rows begin documents
    last: Tensor  # int64 [B, T]
    window: int

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
        self.window = tokens.shape[1]
        self.positions = self.last = torch.arange(self.window, device=tokens.device).expand(tokens.shape)

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
        self.window = cache.keys[0].shape[2]
        self.last = self.positions.clamp(max=self.window - 1)
        self._at = torch.arange(len(positions), device=positions.device), slice(None), positions % self.window

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
        self._past, self._batch, self.window = past, batch, past.window
        own = torch.arange(length, device=tokens.device).expand(tokens.shape)
        self.positions, self.last = own + past.length, own + min(past.length, past.window - 1)
        self.previous = past.last[:batch] if past.length else None
        past.last, past.length = tokens[:, -1:], past.length + length

    def take(self, execution: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """See `Context`."""
        keys = torch.cat((self._past.keys[execution][: self._batch], keys), 2)
        values = torch.cat((self._past.values[execution][: self._batch], values), 2)
        begin = max(0, keys.shape[2] - (self.window - 1))
        self._past.keys[execution], self._past.values[execution] = keys[:, :, begin:], values[:, :, begin:]
        return keys, values
