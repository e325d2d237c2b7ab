"""What exact models of all families have in common: their caches, and the ways in which rows of tokens run."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from codec.exact.kv_cache import Cache, Chunks, Context, Past, Sequences, Steps
from codec.model.config import AnyConfig


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
