"""Attention in fixed point: softmax over integer scores, sums of integer values, and the grid that values lie on."""

import torch
from torch import Tensor

from codec.numerics import tables

_QUERY_CHUNK = 128  # rows of attention scores held at once; cannot change the result


def attend(
    query: Tensor, keys: Tensor, values: Tensor, last: Tensor, window: int, scale: Tensor, exp2: Tensor
) -> Tensor:
    """Softmax attention on integers.

    Args:
        query: [B, kv_heads, group, T, d].
        keys, values: [B, kv_heads, S, d].
        last: int64 [B, T]; a query sees the keys from last - window + 1 to last. Sums have at most `window` terms,
            which a model checks to be few enough, however long a document is.
        scale: [kv_heads, group, 1, 1], from integer scores to 1/LEVELS_PER_BIT bit.
        exp2: `tables.exp2_table(SOFTMAX_BITS)`.

    Returns:
        Values' mean under the weights, float64 [B, kv_heads, group, T, d] in units of the value grid.
    """
    batch, kv_heads, group, length, dim = query.shape
    chunks = []
    for start in range(0, length, _QUERY_CHUNK):
        here = last[:, start : start + _QUERY_CHUNK, None]
        first, end = max(0, int(here.min()) - window + 1), int(here.max()) + 1  # of the keys that any of them sees
        q = query[:, :, :, start : start + _QUERY_CHUNK].reshape(batch, kv_heads, -1, dim)
        scores = (q @ keys[:, :, first:end].transpose(2, 3)).view(batch, kv_heads, group, -1, end - first)
        levels = torch.round(scores * scale)
        key = torch.arange(first, end, device=query.device)
        levels = levels.masked_fill(((key > here) | (key <= here - window))[:, None, None], -torch.inf)
        below = levels.amax(-1, keepdim=True) - levels
        weights = exp2[below.clamp(max=float(tables.EXP2_LENGTH - 1)).to(torch.int64)]
        sums = weights.view(batch, kv_heads, -1, end - first) @ values[:, :, first:end]
        chunks.append(sums.view(batch, kv_heads, group, -1, dim) / weights.sum(-1, keepdim=True))
    return torch.cat(chunks, 3)


def without_own_value(mixed: Tensor, own: Tensor) -> Tensor:
    """XSA: heads' outputs [..., d] minus their component along the position's own value, both in units of its grid."""
    dot = (torch.round(mixed) * own).sum(-1, keepdim=True)
    return mixed - (dot / (own * own).sum(-1, keepdim=True).clamp(min=1.0)) * own
