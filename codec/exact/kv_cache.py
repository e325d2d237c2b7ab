"""Keys and values of the exact model: of whole sequences, of lanes that grow by single tokens, of chunk after chunk."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass
class Cache:
    """Of the last tokens of lanes, per execution float64 [lanes, kv_heads, places, head_dim].

    That of position p is at place p % places: what is older has been overwritten, and the order of keys does not matter
    to sums of integers.
    """

    keys: list[Tensor]
    values: list[Tensor]
    restarts: bool = False  # whether a sequence begins anew behind each window


@dataclass
class Past:
    """What documents that are run chunk by chunk have had: the same number of tokens each, until they end."""

    window: int  # tokens that a token sees, itself included
    length: int  # of each document so far
    last: Tensor  # int64 [documents, 1], their last tokens
    keys: list[Tensor]  # of the last window - 1, per execution float64 [documents, kv_heads, tokens, head_dim]
    values: list[Tensor]
    restarts: bool = False  # whether a document begins anew behind each window


class Context(Protocol):
    """What rows of tokens see. Query t of row b sees the keys from first[b, t] to last[b, t]."""

    positions: Tensor  # int64 [B, T]
    places: Tensor  # int64 [B, T]: positions in what a token sees, where documents begin anew behind each window
    previous: Tensor | None  # int64 [B, 1], the tokens before the rows; None where they begin a document
    first: Tensor  # int64 [B, T]
    last: Tensor  # int64 [B, T]

    def take(self, execution: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """All keys and values [B, kv_heads, S, head_dim], given those of the rows [B, kv_heads, T, head_dim]."""


class Sequences:
    """Whole sequences, which see themselves."""

    previous: Tensor | None = None

    def __init__(self, tokens: Tensor):
        own = torch.arange(tokens.shape[1], device=tokens.device).expand(tokens.shape)
        self.positions = self.places = self.last = own
        self.first = torch.zeros_like(own)

    def take(self, execution: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """See `Context`."""
        return keys, values


class Steps:
    """One token of every lane of a cache, at positions int64 [lanes]."""

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
    """The next chunks, tokens int64 [B, T], of the first documents of a past, which takes them in.

    Those that go on behind it have all T tokens of their own.
    """

    def __init__(self, tokens: Tensor, past: Past):
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
