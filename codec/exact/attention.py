"""Attention in fixed point: softmax over integer scores, sums of integer values, and the grid that values lie on."""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from codec.model.config import ModelConfig
from codec.numerics import tables
from codec.numerics.fixed_point import SNAP_BITS, exponent
from codec.quantization.quantized import Quantized

LARGEST_SCORE = float(1 << 29)
"""Levels of scores saturate there where queries have steps of their own, 131,072 bits from 0."""

SOFTMAX_BITS = 20
"""Fractional bits of attention weights before normalisation (measured on a prototype: 16 or more are needed)."""

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


def squared_lengths(weights: Quantized) -> NDArray[np.float64]:
    """Of the rows of a matrix, float64 [R]; `math.fsum` rounds once, so they are the same on every machine."""
    wide = weights.dequantize().astype(np.float64)
    return np.array([math.fsum(row) for row in (wide * wide).tolist()])


def largest_values(config: ModelConfig, weights: Quantized, squared_length: float) -> NDArray[np.float64]:
    """Bounds [kv_heads] on the squares of a head's entries in products of `weights` [kv_dim, K] with rows of at most
    that squared length (Cauchy-Schwarz)."""
    per_head = squared_lengths(weights).reshape(config.num_kv_heads, config.head_dim).max(1)
    return per_head * squared_length


def value_fractions(squares: NDArray[np.float64]) -> NDArray[np.int64]:
    """Fractional bits [kv_heads] of the grid of values, from bounds on their squares that hold for every input."""
    bits = (exponent(torch.from_numpy(squares)).clamp(-60, 60) + 1) >> 1  # |v| < 2^bits
    return (SNAP_BITS - 1 - bits).numpy()
