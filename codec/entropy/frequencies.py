"""Logits to integer frequencies: the only place that turns probabilities into the integers of the arithmetic coder.

The frequencies of a distribution are integers of at least 1 that sum to 2^24. The cumulative frequency below symbol k
is floor(W_k (2^24 - V) / Z) + k, with W_k the sum of the integer weights 2^24 * 2^(level - max) of the symbols below k
and Z the sum of all weights. Cumulative frequencies are monotone and without ties to break. They are exact in int64:
W_k <= V 2^24, so products stay below 2^62 for V <= 16,384.
"""

import torch
from torch import Tensor

from codec.numerics import tables
from codec.numerics.widths import TOTAL, TOTAL_BITS


def weights(levels: Tensor) -> Tensor:
    """Return the weights of levels.

    Args:
        levels: int64 [..., V], in units of 1/LEVELS_PER_BIT bit.

    Returns:
        int64 [..., V]; the largest weight is 2^24.
    """
    table = torch.from_numpy(tables.exp2_table(TOTAL_BITS)).to(levels.device)
    below = levels.amax(-1, keepdim=True) - levels
    return table[below.clamp(max=tables.EXP2_LENGTH - 1)]


def _cumulative(below: Tensor, symbols: Tensor, z: Tensor, vocabulary: int) -> Tensor:
    """Return the cumulative frequency below `symbols`, whose predecessors' weights sum to `below`."""
    return torch.div(below * (TOTAL - vocabulary), z, rounding_mode="floor") + symbols


def intervals(levels: Tensor, symbols: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the coder's intervals of known symbols.

    Args:
        levels: int64 [N, V].
        symbols: int64 [N].

    Returns:
        (start, frequency), int64 [N] each, and the cross-entropy in bits, float64 [N], of the probabilities before they
        become frequencies. The cross-entropy is for reports; nothing is coded with it.
    """
    w = weights(levels)
    size, index = w.shape[-1], symbols[:, None]
    sums = w.cumsum(-1)
    upper, z = sums.gather(-1, index)[:, 0], sums[:, -1]
    start = _cumulative(upper - w.gather(-1, index)[:, 0], symbols, z, size)
    below = (levels.amax(-1) - levels.gather(-1, index)[:, 0]).double() / tables.LEVELS_PER_BIT
    return start, _cumulative(upper, symbols + 1, z, size) - start, below + (z.double() / TOTAL).log2()


def ordered_sums(levels: Tensor, order: Tensor) -> Tensor:
    """Sum up distributions over the symbols in some order, for a coder that divides them into ever smaller parts.

    Args:
        levels: int64 [N, V].
        order: int64 [V], every symbol once.

    Returns:
        int64 [N, V + 1]: entry k is the sum over the first k symbols in `order` of each one's weight and 1. No symbol
        has nothing. Sums stay below 2^41, since V <= 2^16.
    """
    sums = (weights(levels)[:, order] + 1).cumsum(-1)
    return torch.cat((torch.zeros_like(sums[:, :1]), sums), 1)


def find(levels: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the symbols whose intervals contain `targets`.

    Args:
        levels: int64 [N, V].
        targets: int64 [N], each in [0, 2^24).

    Returns:
        (symbol, start, frequency), int64 [N] each.
    """
    w = weights(levels)
    size = w.shape[-1]
    sums = w.cumsum(-1)
    ends = _cumulative(sums, torch.arange(1, size + 1, device=w.device), sums[:, -1:], size)
    symbols = torch.searchsorted(ends, targets[:, None], right=True)
    end = ends.gather(-1, symbols)[:, 0]
    before = ends.gather(-1, (symbols - 1).clamp(min=0))[:, 0]
    start = torch.where(symbols[:, 0] > 0, before, 0)
    return symbols[:, 0], start, end - start
