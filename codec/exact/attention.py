"""Attention in fixed point: softmax over integer scores, sums of integer values, and the grid that values lie on."""

import torch
from torch import Tensor

from codec.numerics import tables
from codec.numerics.widths import LARGEST_SCORE

_QUERY_CHUNK = 128  # rows of attention scores held at once; cannot change the result


def attend(
    query: Tensor, keys: Tensor, values: Tensor, first: Tensor, last: Tensor, scale: Tensor, exp2: Tensor
) -> Tensor:
    """Softmax attention on integers.

    Args:
        query: [B, kv_heads, group, T, d].
        keys, values: [B, kv_heads, S, d].
        first, last: int64 [B, T], the keys that a query sees: at most a window, of which a model checks that sums are
            exact, however long a document is.
        scale: [kv_heads, group, 1, 1], or [B, kv_heads, group, T, 1], from integer scores to
            1/LEVELS_PER_BIT bit; with the latter, levels saturate at LARGEST_SCORE.
        exp2: `tables.exp2_table(SOFTMAX_BITS)`.

    Returns:
        Values' mean under the weights, float64 [B, kv_heads, group, T, d] in units of the value grid.
    """
    batch, kv_heads, group, length, dim = query.shape
    chunks = []
    for start in range(0, length, _QUERY_CHUNK):
        here, since = (edge[:, start : start + _QUERY_CHUNK, None] for edge in (last, first))
        begin, end = max(0, int(since.min())), int(here.max()) + 1  # of the keys that any of them sees
        unit = scale if scale.shape[-2] == 1 else scale[..., start : start + _QUERY_CHUNK, :]
        q = query[:, :, :, start : start + _QUERY_CHUNK].reshape(batch, kv_heads, -1, dim)
        scores = (q @ keys[:, :, begin:end].transpose(2, 3)).view(batch, kv_heads, group, -1, end - begin)
        levels = torch.round(scores * unit)
        if scale.dim() > 4:
            levels = levels.clamp(-LARGEST_SCORE, LARGEST_SCORE)
        key = torch.arange(begin, end, device=query.device)
        levels = levels.masked_fill(((key > here) | (key < since))[:, None, None], -torch.inf)
        below = levels.amax(-1, keepdim=True) - levels
        weights = exp2[below.clamp(max=float(tables.EXP2_LENGTH - 1)).to(torch.int64)]
        sums = weights.view(batch, kv_heads, -1, end - begin) @ values[:, :, begin:end]
        chunks.append(sums.view(batch, kv_heads, group, -1, dim) / weights.sum(-1, keepdim=True))
    return torch.cat(chunks, 3)


def without_own_value(mixed: Tensor, own: Tensor) -> Tensor:
    """XSA: heads' outputs [..., d] minus their component along the position's own value, both in units of its grid."""
    dot = (torch.round(mixed) * own).sum(-1, keepdim=True)
    return mixed - (dot / (own * own).sum(-1, keepdim=True).clamp(min=1.0)) * own
