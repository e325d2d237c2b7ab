"""Recall: tokens that a document has had in contexts like the present one become likelier, by tables learned from text.

A network sees a window, and copies imperfectly. Recall looks back at the last HISTORY tokens of the document. For each
token that followed one of them it takes two measures, each the greatest over all places where it did: the *agreement*,
a mask of which of the last tokens there and here are the same, the newest in the highest bit; and the *similarity* of
the network's last hidden state there and here. Both, with how probable the model holds the token, are looked up in
tables of what is added to its level. Tables, masks, levels and the keys of hidden states are integers, and all are
functions of tokens that a decoder has: it repeats what the encoder did.

Ancestors: the match models and adaptive probability maps of PAQ (Mahoney 2005), and the neural cache of Grave, Joulin
and Usunier (2016), whose similarities are exponentiated instead of looked up.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from codec.entropy import frequencies
from codec.errors import FormatError
from codec.numerics.fixed_point import reciprocal_sqrt, snap, snap_fixed
from codec.numerics.tables import LEVELS_PER_BIT
from codec.numerics.widths import NORM_EPSILON

HISTORY = 8192
"""Tokens of a document that are looked back at."""

UNIT = LEVELS_PER_BIT // 16
"""Levels that an entry of a table counts: 1/16 bit."""

PATTERN_BITS, REST_BITS = 4, 12
"""Of a mask: those whose pattern counts, and the older ones, of which the number of equal tokens counts."""

SURPRISALS = (1, 2, 3, 4, 6, 8, 11)
"""Where the tables' columns end, in bits: a token of probability over 2^-1 is in the first, the last has no end."""

STEPS = 10
"""Rows that a similarity, a cosine, is worth; those below 0 share two rows."""

KEY_LIMIT, KEY_FRACTION = 127, 4
"""Of keys, rows of unit mean square: the largest integer, and the fractional bits."""

HIDDEN_FRACTION = 9
"""Fractional bits of hidden states, rows of unit mean square, when their mean is taken off."""

SHAPES = {
    "patterns": (1 << PATTERN_BITS, len(SURPRISALS) + 1),
    "rest": (REST_BITS + 1, len(SURPRISALS) + 1),
    "similarities": (STEPS + 2, len(SURPRISALS) + 1),
}


@dataclass(frozen=True)
class Recall:
    """What is added to levels, in UNITs: integers of 8 bits by row (see `rows`) and by column (SURPRISALS)."""

    patterns: Sequence[Sequence[int]]
    rest: Sequence[Sequence[int]]
    similarities: Sequence[Sequence[int]]

    @cached_property
    def tables(self) -> NDArray[np.int32]:
        """All rows, one table below the other."""
        return np.concatenate([getattr(self, field.name) for field in fields(self)]).astype(np.int32)

    def to_json(self) -> dict[str, Any]:
        """As `read_recall` reads it."""
        return asdict(self)


def read_recall(values: Any) -> Recall:
    """The tables of a pack's header. Raises FormatError for anything else."""
    good = isinstance(values, dict) and values.keys() == SHAPES.keys()
    for name, (rows, columns) in SHAPES.items() if good else ():
        table = values[name]
        good = good and isinstance(table, list) and len(table) == rows
        for row in table if good else ():
            good = good and isinstance(row, list) and len(row) == columns
            good = good and all(type(n) is int and -128 <= n <= 127 for n in row)
    if not good:
        raise FormatError(f"pack: recall is no tables of 8-bit integers of shapes {SHAPES}; fit them again")
    return Recall(**values)


class Memory:
    """What recall knows of the documents in some lanes, and what it makes of levels: the reference.

    Place i of a document is kept in slot i % history: its token, its key, the token that followed, and the mask of the
    tokens there and here. Args: the tables, lanes, the width of hidden states, and places that are looked back at.
    """

    def __init__(
        self, recall: Recall, lanes: int, dim: int, device: torch.device | str = "cpu", history: int = HISTORY
    ):
        self._tables = torch.from_numpy(recall.tables * UNIT).to(device, torch.int64)
        counts = [n.bit_count() for n in range(1 << REST_BITS)]
        self._counts = torch.tensor(counts, device=device)
        self.tokens = torch.full((lanes, history), -1, device=device)
        self.followers = torch.full_like(self.tokens, -1)
        self.masks = torch.zeros_like(self.tokens)
        self.keys = torch.zeros(lanes, history, dim, dtype=torch.int8, device=device)
        self.sums = torch.zeros(lanes, dim, dtype=torch.float64, device=device)  # of hidden states
        self.places = torch.zeros(lanes, dtype=torch.int64, device=device)

    def keep(self, lanes: Tensor) -> None:
        """Drop all lanes but these, int64 [n]."""
        for name in ("tokens", "followers", "masks", "keys", "sums", "places"):
            setattr(self, name, getattr(self, name)[lanes])

    def step(self, lanes: Tensor, positions: Tensor, tokens: Tensor, hidden: tuple[Tensor, Tensor], levels: Tensor):
        """The levels, int64 [n, V], of what follows one more token of some lanes.

        Args:
            lanes, positions, tokens: int64 [n]; a document begins at position 0.
            hidden: what the model says of the tokens, float64 [n, dim] and [n, 1].
            levels: what it makes of that.
        """
        new = lanes[positions == 0]
        self.tokens[new], self.followers[new], self.masks[new] = -1, -1, 0
        self.sums[new], self.places[new] = 0.0, 0
        place, history = self.places[lanes], self.tokens.shape[1]
        slot, used = place % history, min(int(place.max()) + 1, history)
        self.followers[lanes, (place - 1) % history] = torch.where(place > 0, tokens, -1)
        equal = (self.tokens[lanes, :used] == tokens[:, None]).to(torch.int64)
        masks = (self.masks[lanes, :used].roll(1, 1) >> 1) | equal << (PATTERN_BITS + REST_BITS - 1)
        key = self._key(lanes, *hidden)
        # A key's square is below 272 a dimension: products are exact in float32, in any order.
        similarities = (self.keys[lanes, :used].float() @ key.float()[:, :, None])[:, :, 0].to(torch.int64)
        levels = self._raised(levels, self.followers[lanes, :used], masks, similarities, key.shape[1])
        self.tokens[lanes, slot], self.followers[lanes, slot] = tokens, -1
        self.masks[lanes, :used], self.keys[lanes, slot] = masks, key
        self.places[lanes] = place + 1
        return levels

    def _key(self, lanes: Tensor, hidden: Tensor, step: Tensor) -> Tensor:
        """Keys int8 [n, dim]: hidden states less the mean of the document's so far, of unit mean square."""
        fixed = snap_fixed(hidden * step, HIDDEN_FRACTION)
        self.sums[lanes] += fixed
        centred, step = snap(fixed * (self.places[lanes, None] + 1.0) - self.sums[lanes])
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
        """Rows of `Recall.tables` for masks and products of keys."""
        one = dim << (2 * KEY_FRACTION)
        steps = torch.div(similarity * STEPS, one, rounding_mode="floor") + 1
        first, second = SHAPES["patterns"][0], SHAPES["rest"][0]
        return (
            agreement >> REST_BITS,
            first + self._counts[agreement & ((1 << REST_BITS) - 1)],
            first + second + steps.clamp(0, STEPS + 1),
        )
