"""The softcapped cross-entropy of logits and its derivatives in one pass over memory: a Triton kernel for a GPU.

A program keeps the logits of a token in registers. The compiler's own kernel reads and squashes the logits twice, and
takes two to three times as long as the memory traffic needs.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

NUMBERS = 1024
"""Logits of a warp, 32 to a thread."""


@triton.jit
def _slopes(logits, targets, losses, slopes, cap, count, V: tl.constexpr, BLOCK: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    mask = columns < V
    hit = columns == tl.load(targets + token).to(tl.int32)
    x = tl.load(logits + token * V + columns, mask=mask, other=0.0).to(tl.float32)
    squashed = 2 * tl.sigmoid(x * (2 / cap)) - 1  # tanh(x / cap)
    capped = tl.where(mask, cap * squashed, float("-inf"))
    greatest = tl.max(capped, 0)
    powers = tl.exp(capped - greatest)
    total = tl.sum(powers, 0)
    tl.store(losses + token, greatest + tl.log(total) - tl.sum(tl.where(hit, capped, 0.0), 0))
    slope = (powers * (1 / total) - tl.where(hit, 1.0, 0.0)) * (1 - squashed * squashed) * (1 / count)
    tl.store(slopes + token * V + columns, slope.to(slopes.dtype.element_ty), mask=mask)


@torch.library.custom_op("underpar::losses_and_slopes", mutates_args=())
def losses_and_slopes(logits: Tensor, targets: Tensor, cap: float, count: int) -> tuple[Tensor, Tensor]:
    """Compute `trainer.model.cross_entropy.losses_and_slopes` of contiguous tensors."""
    (tokens, vocab), losses, slopes = logits.shape, *_empty(logits)
    block = triton.next_power_of_2(vocab)
    warps = max(1, block // NUMBERS)
    _slopes[(tokens,)](logits, targets, losses, slopes, cap, float(count), V=vocab, BLOCK=block, num_warps=warps)
    return losses, slopes


@losses_and_slopes.register_fake
def _(logits: Tensor, targets: Tensor, cap: float, count: int) -> tuple[Tensor, Tensor]:
    return _empty(logits)


def _empty(logits: Tensor) -> tuple[Tensor, Tensor]:
    return logits.new_empty(len(logits), dtype=torch.float32), torch.empty_like(logits)
