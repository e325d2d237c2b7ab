"""What exact models of all families have in common: the ways in which rows of tokens run, and what they see.

Keys and values are integers in float64. A cache is a ring: position p is at place p % places.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from codec.model.config import AnyConfig


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


class ExactNetwork(ABC):
    """A network in fixed point: integers that are the same for every batch shape, thread count and device.

    Attributes:
        config: the model's shape.
        device: where it computes.
    """

    config: AnyConfig
    device: torch.device

    @abstractmethod
    def _run(self, tokens: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """The last hidden state of rows of tokens [B, T], as `forward` returns it."""

    @abstractmethod
    def levels(self, hidden: Tensor, step: Tensor) -> Tensor:
        """Logits in 1/LEVELS_PER_BIT bit, int64 [..., V], of what `forward` or `step` returned."""

    def new_cache(self, lanes: int, window: int) -> Cache:
        """An empty cache for `lanes` sequences with a context of `window` tokens."""
        return Cache(self._caches(lanes, window), self._caches(lanes, window), self.config.restarts)

    def new_past(self, documents: int, window: int) -> Past:
        """The past of documents that have had nothing, with a context of `window` tokens."""
        last = torch.zeros(documents, 1, dtype=torch.int64, device=self.device)
        keys, values = (self._caches(documents, 0) for _ in range(2))
        return Past(window, 0, last, keys, values, self.config.restarts)

    def _caches(self, count: int, places: int) -> list[Tensor]:
        shape = (count, self.config.num_kv_heads, places, self.config.head_dim)
        return [torch.zeros(shape, dtype=torch.float64, device=self.device) for _ in self.config.schedule]

    @torch.inference_mode()
    def forward(self, tokens: Tensor, past: Past | None = None) -> tuple[Tensor, Tensor]:
        """Run whole sequences from position 0, or with a past the next chunks of its first documents.

        Args:
            tokens: int64 [B, T], T <= window without a past.
            past: takes the chunks in; those of documents that go on behind them have all T tokens of their own.

        Returns:
            The snapped, normalised last hidden state (X float64 [B, T, dim], step float64 [B, T, 1]), for `levels`.
        """
        return self._run(tokens, Chunks(tokens, past) if past else Sequences(tokens))

    @torch.inference_mode()
    def step(self, tokens: Tensor, previous: Tensor, positions: Tensor, cache: Cache) -> tuple[Tensor, Tensor]:
        """Run one more token of every lane of the cache.

        Args:
            tokens: int64 [B], the token at `positions` of each lane.
            previous: int64 [B], the token before it (any value at position 0).
            positions: int64 [B]; the cache holds the tokens of the lane before it, or the last of them.

        Returns:
            As `forward`, with T = 1.
        """
        return self._run(tokens[:, None], Steps(previous, positions, cache))
