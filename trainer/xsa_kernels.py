"""Attention outputs without their own values (XSA) in one pass over memory, and back: Triton kernels for a GPU."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

EPS = 2.0**-23
"""As in `trainer.model`."""

ROWS = 32
"""Tokens that a program works on, of one head of values and the group of queries that share it."""


@triton.jit
def _without_value(
    y, v, out, tokens, eps, H: tl.constexpr, KV: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr
):
    head = tl.program_id(0)
    token = (tl.program_id(1) * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None]
    columns = tl.arange(0, BLOCK)[None, :]
    mask = (token < tokens) & (columns < D)
    own = tl.load(v + (token * KV + head) * D + columns, mask=mask, other=0.0).to(tl.float32)
    length = tl.maximum(tl.sum(own * own, 1), eps)
    for member in tl.static_range(H // KV):
        place = (token * H + head * (H // KV) + member) * D + columns
        row = tl.load(y + place, mask=mask, other=0.0).to(tl.float32)
        share = tl.sum(row * own, 1) / length
        tl.store(out + place, (row - share[:, None] * own).to(out.dtype.element_ty), mask=mask)


@triton.jit
def _without_value_back(
    y,
    v,
    given,
    dy,
    dv,
    tokens,
    eps,
    H: tl.constexpr,
    KV: tl.constexpr,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
):
    head = tl.program_id(0)
    token = (tl.program_id(1) * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None]
    columns = tl.arange(0, BLOCK)[None, :]
    mask = (token < tokens) & (columns < D)
    own = tl.load(v + (token * KV + head) * D + columns, mask=mask, other=0.0).to(tl.float32)
    square = tl.sum(own * own, 1)
    length = tl.maximum(square, eps)
    bends = tl.where(square > eps, 2.0, 0.0)  # the length follows the value only where it is not held at eps
    total = tl.zeros((ROWS, BLOCK), tl.float32)
    for member in tl.static_range(H // KV):
        place = (token * H + head * (H // KV) + member) * D + columns
        row = tl.load(y + place, mask=mask, other=0.0).to(tl.float32)
        gradient = tl.load(given + place, mask=mask, other=0.0).to(tl.float32)
        share = tl.sum(row * own, 1) / length
        along = tl.sum(gradient * own, 1) / length
        tl.store(dy + place, (gradient - along[:, None] * own).to(dy.dtype.element_ty), mask=mask)
        total += (bends * share * along)[:, None] * own - share[:, None] * gradient - along[:, None] * row
    tl.store(dv + (token * KV + head) * D + columns, total.to(dv.dtype.element_ty), mask=mask)


def _launch(kernel: Any, *tensors: Tensor) -> None:
    """Run a kernel on tensors of which the first two are of the shapes of queries and values."""
    (batch, length, heads, dim), kv_heads = tensors[0].shape, tensors[1].shape[2]
    grid = kv_heads, triton.cdiv(batch * length, ROWS)
    shape = {"H": heads, "KV": kv_heads, "D": dim, "BLOCK": triton.next_power_of_2(dim), "ROWS": ROWS}
    kernel[grid](*tensors, batch * length, EPS, **shape)


@torch.library.custom_op("underpar::without_value", mutates_args=())
def without_value(y: Tensor, v: Tensor) -> Tensor:
    """y [B, T, H, d] minus its component along v [B, T, KV, d], the value of its head's group; both contiguous."""
    out = torch.empty_like(y)
    _launch(_without_value, y, v, out)
    return out


@without_value.register_fake
def _(y: Tensor, v: Tensor) -> Tensor:
    return torch.empty_like(y)


@torch.library.custom_op("underpar::without_value_back", mutates_args=())
def without_value_back(y: Tensor, v: Tensor, given: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of y and v from that of `without_value`."""
    dy, dv = torch.empty_like(y), torch.empty_like(v)
    _launch(_without_value_back, y, v, given, dy, dv)
    return dy, dv


@without_value_back.register_fake
def _(y: Tensor, v: Tensor, given: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(y), torch.empty_like(v)


class WithoutValue(torch.autograd.Function):
    """`without_value` with its gradients."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, v: Tensor) -> Tensor:
        ctx.save_for_backward(y, v)
        return without_value(y, v)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        return without_value_back(*ctx.saved_tensors, gradients[0].contiguous())


def fused_without_own_value(y: Tensor, v: Tensor) -> Tensor:
    """`trainer.model.without_own_value` of y [B, H, T, d] and v [B, KV, T, d]."""
    y, v = (heads.transpose(1, 2).contiguous() for heads in (y, v))
    return WithoutValue.apply(y, v).transpose(1, 2)
