"""Logits to integer frequencies: the only place that turns probabilities into the integers of the arithmetic coder.

The frequencies of a distribution over V symbols are integers of at least 1 that sum to T = 2^total_bits(V). The
cumulative frequency below symbol k is floor((W_k >> r) (T - V) / (Z >> r)) + k, with W_k the sum of the integer weights
T 2^(level - max) of the symbols below k and Z the sum of all: monotone, and without ties to break. Products of Z and T
stay below 2^62, since r drops the lowest bits of a Z that is larger; up to 2^14 symbols it never is, and beyond
it is so only where thousands of symbols are about as likely as the likeliest, and then by bits that no frequency shows.

The floor of 1 takes V / T of the probability from all, at most 1.44 V / T bits a token: 0.0014 for 16,384 symbols of
2^24, 0.0005 for 49,152 of 2^27, 0.0016 for 152,000.
"""

import torch
from torch import Tensor

from codec.numerics import tables
from codec.numerics.fixed_point import exponent
from codec.numerics.widths import PRODUCT_BITS, total_bits


def weights(levels: Tensor) -> Tensor:
    """Return the weights of levels.

    Args:
        levels: int64 [..., V], in units of 1/LEVELS_PER_BIT bit.

    Returns:
        int64 [..., V]; the largest weight is 2^total_bits(V).
    """
    table = torch.from_numpy(tables.exp2_table(total_bits(levels.shape[-1]))).to(levels.device)
    below = levels.amax(-1, keepdim=True) - levels
    return table[below.clamp(max=tables.EXP2_LENGTH - 1)]


def _cumulative(below: Tensor, symbols: Tensor, z: Tensor, vocabulary: int) -> Tensor:
    """Return the cumulative frequency below `symbols`, whose predecessors' weights sum to `below`."""
    bits = total_bits(vocabulary)
    drop = (exponent(z.double()) - (PRODUCT_BITS - bits)).clamp(min=0)
    product = (below >> drop) * ((1 << bits) - vocabulary)
    return torch.div(product, z >> drop, rounding_mode="floor") + symbols


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
    cross_entropy = below + z.double().log2() - total_bits(size)
    return start, _cumulative(upper, symbols + 1, z, size) - start, cross_entropy


def ordered_sums(levels: Tensor, order: Tensor) -> Tensor:
    """Sum up distributions over the symbols in some order, for a coder that divides them into ever smaller parts.

    Args:
        levels: int64 [N, V].
        order: int64 [K], symbols, each at most once.

    Returns:
        int64 [N, K + 1]: entry k is the sum over the first k symbols in `order` of each one's weight and 1. No symbol
        has nothing. Sums stay below 2^45, since V < 2^18.
    """
    sums = (weights(levels)[:, order] + 1).cumsum(-1)
    return torch.cat((torch.zeros_like(sums[:, :1]), sums), 1)


def find(levels: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the symbols whose intervals contain `targets`.

    Args:
        levels: int64 [N, V].
        targets: int64 [N], each in [0, 2^total_bits(V)).

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
