"""Raise levels by the match model (`codec.exact.recall`) on torch: the reference."""

import torch
from torch import Tensor

from codec.entropy import frequencies
from codec.exact.recall import (
    HIDDEN_FRACTION,
    HISTORY,
    KEY_FRACTION,
    KEY_LIMIT,
    PATTERN_BITS,
    REST_BITS,
    SHAPES,
    STEPS,
    SURPRISALS,
    UNIT,
    Recall,
)
from codec.numerics.fixed_point import reciprocal_sqrt, snap, snap_fixed
from codec.numerics.widths import NORM_EPSILON


class Memory:
    """The match model's memory of the documents in decoding slots.

    Index i % history holds position i of a document: the token, the key, the token that followed, and the mask that
    compares the tokens up to position i with the newest tokens.

    Args:
        recall: the tables.
        slots: how many slots there are.
        dim: the width of hidden states.
        device: where to compute.
        history: how many positions to look back at.
    """

    def __init__(
        self, recall: Recall, slots: int, dim: int, device: torch.device | str = "cpu", history: int = HISTORY
    ):
        self._tables = torch.from_numpy(recall.tables * UNIT).to(device, torch.int64)
        counts = [n.bit_count() for n in range(1 << REST_BITS)]
        self._counts = torch.tensor(counts, device=device)
        self.tokens = torch.full((slots, history), -1, device=device)
        self.followers = torch.full_like(self.tokens, -1)
        self.masks = torch.zeros_like(self.tokens)
        self.keys = torch.zeros(slots, history, dim, dtype=torch.int8, device=device)
        self.sums = torch.zeros(slots, dim, dtype=torch.float64, device=device)  # of a document's hidden states
        self.places = torch.zeros(slots, dtype=torch.int64, device=device)

    def keep(self, slots: Tensor) -> None:
        """Drop all slots but these, int64 [n]."""
        for name in ("tokens", "followers", "masks", "keys", "sums", "places"):
            setattr(self, name, getattr(self, name)[slots])

    def step(self, slots: Tensor, positions: Tensor, tokens: Tensor, hidden: tuple[Tensor, Tensor], levels: Tensor):
        """Add one more token to each of some slots, and raise the levels of the tokens that may follow.

        Args:
            slots: int64 [n], numbers of the slots.
            positions: int64 [n], the positions of the tokens. Position 0 begins a document.
            tokens: int64 [n].
            hidden: the model's snapped last hidden states at the tokens and their steps, float64 [n, dim] and [n, 1].
            levels: int64 [n, V], the model's levels behind the tokens.

        Returns:
            The raised levels, int64 [n, V].
        """
        new = slots[positions == 0]
        self.tokens[new], self.followers[new], self.masks[new] = -1, -1, 0
        self.sums[new], self.places[new] = 0.0, 0
        place, history = self.places[slots], self.tokens.shape[1]
        index, used = place % history, min(int(place.max()) + 1, history)
        self.followers[slots, (place - 1) % history] = torch.where(place > 0, tokens, -1)
        equal = (self.tokens[slots, :used] == tokens[:, None]).to(torch.int64)
        masks = (self.masks[slots, :used].roll(1, 1) >> 1) | equal << (PATTERN_BITS + REST_BITS - 1)
        key = self._key(slots, *hidden)
        # A key's square is below 272 a dimension: products are exact in float32, in any order.
        similarities = (self.keys[slots, :used].float() @ key.float()[:, :, None])[:, :, 0].to(torch.int64)
        levels = self._raised(levels, self.followers[slots, :used], masks, similarities, key.shape[1])
        self.tokens[slots, index], self.followers[slots, index] = tokens, -1
        self.masks[slots, :used], self.keys[slots, index] = masks, key
        self.places[slots] = place + 1
        return levels

    def _key(self, slots: Tensor, hidden: Tensor, step: Tensor) -> Tensor:
        """Compute keys int8 [n, dim]: hidden states minus the document's mean so far, scaled to unit mean square."""
        fixed = snap_fixed(hidden * step, HIDDEN_FRACTION)
        self.sums[slots] += fixed
        centred, step = snap(fixed * (self.places[slots, None] + 1.0) - self.sums[slots])
        squares = (centred * centred).sum(-1, keepdim=True)
        mean = squares * step * step * (1.0 / hidden.shape[1]) + NORM_EPSILON
        unit = centred * (step * reciprocal_sqrt(mean))
        return snap_fixed(unit, KEY_FRACTION).clamp(-KEY_LIMIT, KEY_LIMIT).to(torch.int8)

    def _raised(self, levels: Tensor, followers: Tensor, masks: Tensor, similarities: Tensor, dim: int) -> Tensor:
        seen = followers >= 0
        index = torch.where(seen, followers, levels.shape[1])

        def greatest(values: Tensor) -> Tensor:
            out = torch.full((len(levels), levels.shape[1] + 1), -(1 << 40), device=levels.device)
            return out.scatter_reduce(1, index, values, "amax")[:, :-1]

        agreement, similarity = greatest(masks), greatest(similarities)
        past = agreement >= 0
        weights = frequencies.weights(levels)
        total = weights.sum(-1, keepdim=True)
        columns = sum((weights << bits <= total).to(torch.int64) for bits in SURPRISALS)
        rows = self.rows(agreement.clamp(min=0), similarity, dim)
        return levels + sum(torch.where(past, self._tables[row, columns], 0) for row in rows)

    def rows(self, agreement: Tensor, similarity: Tensor, dim: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return the three rows of `Recall.tables` for masks and products of keys."""
        one = dim << (2 * KEY_FRACTION)
        steps = torch.div(similarity * STEPS, one, rounding_mode="floor") + 1
        first, second = SHAPES["patterns"][0], SHAPES["rest"][0]
        return (
            agreement >> REST_BITS,
            first + self._counts[agreement & ((1 << REST_BITS) - 1)],
            first + second + steps.clamp(0, STEPS + 1),
        )
