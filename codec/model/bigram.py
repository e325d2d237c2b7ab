"""BigramHash: the table row for a token and its predecessor, in the float and the exact model alike."""

import torch

from codec.model.tokenizer import BOS
from codec.numerics.pair_hash import pair_hash


def bigram_rows(tokens: torch.Tensor, buckets: int, previous: torch.Tensor | None = None) -> torch.Tensor:
    """Return the rows of the hash table [buckets, ...] for each position.

    A pair hashes to a row by `codec.numerics.pair_hash`, the challenge's function. The last row stands for "no pair": a
    BOS, or the first position of a row of `tokens` when `previous` is None.

    Args:
        tokens: int64 [B, T].
        buckets: rows of the table, at least 2.
        previous: int64 [B, 1], the tokens before each row.

    Returns:
        int64 [B, T], each 0 to buckets - 1.
    """
    before = torch.cat((torch.full_like(tokens[:, :1], BOS) if previous is None else previous, tokens[:, :-1]), dim=1)
    rows = pair_hash(tokens, before, buckets - 1)
    alone = tokens == BOS
    if previous is None:
        alone = alone | (torch.arange(tokens.shape[1], device=tokens.device) == 0)
    return torch.where(alone, buckets - 1, rows)
