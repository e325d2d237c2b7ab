"""Queries, keys and values from their joint product in one pass over memory, and back: Triton kernels for a GPU.

The operations on heads between that product and attention (norm, rotation, gain; see `trainer.model.gpt.Attention`)
read and write each number once, forward and backward. Kernels made by a compiler take two to three times as long,
because a rotation pairs numbers that are apart in memory.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

EPS = 2.0**-23
"""The value of `trainer.model.layers.EPS`."""

ROWS = 32
"""Tokens of a program, of one head: tiles of float32 of this height stay in registers."""


@triton.jit
def _tables(cos, sin, position, columns, mask, HALF: tl.constexpr):
    """Return each number's factor, its partner's factor, the partner's index, and whether a partner exists.

    A rotation takes (a, b) to (a cos + b sin, b cos - a sin), a from the first HALF numbers of a head and b from the
    next.
    """
    turns = mask & (columns < 2 * HALF)[None, :]
    entry = position[:, None] * HALF + (columns % HALF)[None, :]
    own = tl.load(cos + entry, mask=turns, other=1.0)
    other = tl.load(sin + entry, mask=turns, other=0.0)
    other = tl.where((columns < HALF)[None, :], other, -other)
    partner = tl.where(columns < HALF, columns + HALF, columns - HALF)
    return own, other, partner, turns


@triton.jit
def _split(
    joint,
    gain,
    cos,
    sin,
    q,
    k,
    v,
    tokens,
    length,
    eps,
    H: tl.constexpr,
    KV: tl.constexpr,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
    HALF: tl.constexpr,
    ROWS: tl.constexpr,
):
    head = tl.program_id(0)
    token = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, BLOCK)
    mask = (token < tokens)[:, None] & (columns < D)[None, :]
    rows = joint + token.to(tl.int64)[:, None] * ((H + 2 * KV) * D) + head * D
    x = tl.load(rows + columns[None, :], mask=mask, other=0.0)
    if head >= H + KV:
        out = v + token.to(tl.int64)[:, None] * (KV * D) + (head - H - KV) * D
        tl.store(out + columns[None, :], x, mask=mask)
    else:
        own, other, partner, turns = _tables(cos, sin, token % length, columns, mask, HALF)
        paired = tl.load(rows + partner[None, :], mask=turns, other=0.0).to(tl.float32)
        numbers = x.to(tl.float32)
        scale = 1 / tl.sqrt(tl.sum(numbers * numbers, 1) / D + eps)
        y = (numbers * own + paired * other) * scale[:, None]
        if head < H:
            y = y * tl.load(gain + head)
            out = q + token.to(tl.int64)[:, None] * (H * D) + head * D
        else:
            out = k + token.to(tl.int64)[:, None] * (KV * D) + (head - H) * D
        tl.store(out + columns[None, :], y.to(q.dtype.element_ty), mask=mask)


@triton.jit
def _join(
    joint,
    gain,
    cos,
    sin,
    dq,
    dk,
    dv,
    gradient,
    parts,
    tokens,
    length,
    eps,
    H: tl.constexpr,
    KV: tl.constexpr,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
    HALF: tl.constexpr,
    ROWS: tl.constexpr,
):
    head = tl.program_id(0)
    token = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, BLOCK)
    mask = (token < tokens)[:, None] & (columns < D)[None, :]
    place = token.to(tl.int64)[:, None] * ((H + 2 * KV) * D) + head * D + columns[None, :]
    if head >= H + KV:
        given = dv + token.to(tl.int64)[:, None] * (KV * D) + (head - H - KV) * D
        tl.store(gradient + place, tl.load(given + columns[None, :], mask=mask, other=0.0), mask=mask)
    else:
        factor = 1.0
        if head < H:
            factor = tl.load(gain + head)
            given = dq + token.to(tl.int64)[:, None] * (H * D) + head * D
        else:
            given = dk + token.to(tl.int64)[:, None] * (KV * D) + (head - H) * D
        own, other, partner, turns = _tables(cos, sin, token % length, columns, mask, HALF)
        dy = tl.load(given + columns[None, :], mask=mask, other=0.0).to(tl.float32)
        paired = tl.load(given + partner[None, :], mask=turns, other=0.0).to(tl.float32)
        x = tl.load(joint + place, mask=mask, other=0.0).to(tl.float32)
        scale = (1 / tl.sqrt(tl.sum(x * x, 1) / D + eps))[:, None]
        back = dy * own - paired * other  # the rotation's transpose
        normed = x * scale
        along = tl.sum(normed * back, 1)
        dx = factor * scale * (back - normed * (along / D)[:, None])
        tl.store(gradient + place, dx.to(gradient.dtype.element_ty), mask=mask)
        if head < H:
            tl.store(parts + tl.program_id(1) * H + head, tl.sum(along, 0))


def _launch(kernel: Any, tensors: tuple[Tensor, ...], cos: Tensor) -> None:
    """Run `_split` or `_join`; the fifth and sixth tensor are of the shapes of queries and keys."""
    batch, length, heads, dim = tensors[4].shape
    tokens, kv_heads = batch * length, tensors[5].shape[2]
    shape = {"H": heads, "KV": kv_heads, "D": dim, "BLOCK": triton.next_power_of_2(dim), "HALF": cos.shape[1]}
    kernel[heads + 2 * kv_heads, triton.cdiv(tokens, ROWS)](*tensors, tokens, length, EPS, ROWS=ROWS, **shape)


@torch.library.custom_op("underpar::split_heads", mutates_args=())
def split_heads(
    joint: Tensor, gain: Tensor, cos: Tensor, sin: Tensor, heads: int, kv_heads: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Split a joint product into normalised, rotated queries times their gains, such keys, and values.

    Args:
        joint: [B, T, (heads + 2 kv_heads) d], contiguous.
        gain: float32 [heads].
        cos: float32 [T, rotary_dims / 2].
        sin: float32 [T, rotary_dims / 2].
        heads: heads of queries.
        kv_heads: heads of keys and of values.

    Returns:
        [B, T, heads, d], [B, T, kv_heads, d] and [B, T, kv_heads, d].
    """
    q, k, v = _empty(joint, heads, kv_heads)
    _launch(_split, (joint, gain, cos, sin, q, k, v), cos)
    return q, k, v


@split_heads.register_fake
def _(joint: Tensor, gain: Tensor, cos: Tensor, sin: Tensor, heads: int, kv_heads: int) -> tuple[Tensor, ...]:
    return _empty(joint, heads, kv_heads)


@torch.library.custom_op("underpar::join_heads", mutates_args=())
def join_heads(
    joint: Tensor, gain: Tensor, cos: Tensor, sin: Tensor, dq: Tensor, dk: Tensor, dv: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the gradients of `joint` and of `gain`, from those of the heads.

    The gradient of `gain` comes in parts [programs, heads] to be summed.
    """
    gradient = torch.empty_like(joint)
    parts = gain.new_empty(triton.cdiv(joint.shape[0] * joint.shape[1], ROWS), len(gain))
    _launch(_join, (joint, gain, cos, sin, dq, dk, dv, gradient, parts), cos)
    return gradient, parts


@join_heads.register_fake
def _(
    joint: Tensor, gain: Tensor, cos: Tensor, sin: Tensor, dq: Tensor, dk: Tensor, dv: Tensor
) -> tuple[Tensor, Tensor]:
    parts = gain.new_empty(triton.cdiv(joint.shape[0] * joint.shape[1], ROWS), len(gain))
    return torch.empty_like(joint), parts


def _empty(joint: Tensor, heads: int, kv_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    batch, length, width = joint.shape
    dim = width // (heads + 2 * kv_heads)
    q, k, v = (joint.new_empty(batch, length, count, dim) for count in (heads, kv_heads, kv_heads))
    return q, k, v


class SplitHeads(torch.autograd.Function):
    """`split_heads` with its gradients."""

    @staticmethod
    def forward(
        ctx: Any, joint: Tensor, gain: Tensor, cos: Tensor, sin: Tensor, heads: int, kv_heads: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.save_for_backward(joint, gain, cos, sin)
        return split_heads(joint, gain, cos, sin, heads, kv_heads)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        joint, gain, cos, sin = ctx.saved_tensors
        dq, dk, dv = (gradient.contiguous() for gradient in gradients)
        gradient, parts = join_heads(joint, gain, cos, sin, dq, dk, dv)
        return gradient, parts.sum(0), None, None, None, None


def fused_heads(joint: Tensor, gain: Tensor, cos: Tensor, sin: Tensor, heads: int, kv_heads: int) -> tuple[Tensor, ...]:
    """Call `split_heads` with gradients and return dimensions in attention's order: [B, heads, T, d]."""
    return tuple(part.transpose(1, 2) for part in SplitHeads.apply(joint, gain, cos, sin, heads, kv_heads))
