"""Compute attention in fixed point: a softmax over integer scores, and sums of integer values."""

import torch
from torch import Tensor

from codec.numerics import tables
from codec.numerics.widths import LARGEST_SCORE

_QUERY_CHUNK = 128  # queries whose scores are in memory at once; the result does not depend on the number


def attend(
    query: Tensor, keys: Tensor, values: Tensor, first: Tensor, last: Tensor, scale: Tensor, exp2: Tensor
) -> Tensor:
    """Compute sliding-window softmax attention on integers.

    A sum has at most `window` terms, however long the document is. `codec.exact.weights.check` makes sure that so many
    terms are exact.

    Args:
        query: float64 [B, kv_heads, group, T, d], integers.
        keys: float64 [B, kv_heads, S, d], integers.
        values: float64 [B, kv_heads, S, d], integers.
        first: int64 [B, T], the index of the first key that each query sees.
        last: int64 [B, T], the index of the last key that each query sees; a query sees at most a window.
        scale: float64 [kv_heads, group, 1, 1] or [B, kv_heads, group, T, 1], from integer scores to 1/LEVELS_PER_BIT
            bit. With the latter, levels saturate at LARGEST_SCORE.
        exp2: `tables.exp2_table(SOFTMAX_BITS)`.

    Returns:
        The mean of the values under the attention weights, float64 [B, kv_heads, group, T, d], in units of the value
        grid.
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
    """Remove from heads' outputs [..., d] the component along the position's own value (XSA).

    Outputs and values are float64, in units of the value grid.
    """
    dot = (torch.round(mixed) * own).sum(-1, keepdim=True)
    return mixed - (dot / (own * own).sum(-1, keepdim=True).clamp(min=1.0)) * own
