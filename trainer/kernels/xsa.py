"""Gated attention outputs without their own values (XSA), one pass over memory each way: Triton kernels for a GPU."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

EPS = 2.0**-23
"""The value of `trainer.model.layers.EPS`."""

ROWS = 32
"""Tokens of a program, of one head of values and the group of queries that share that head."""


@triton.jit
def _without_value(
    y,
    v,
    gates,
    out,
    tokens,
    eps,
    H: tl.constexpr,
    KV: tl.constexpr,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
):
    head = tl.program_id(0)
    token = (tl.program_id(1) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    columns = tl.arange(0, BLOCK)[None, :]
    mask = (token < tokens)[:, None] & (columns < D)
    own = tl.load(v + ((token * KV + head) * D)[:, None] + columns, mask=mask, other=0.0).to(tl.float32)
    length = tl.maximum(tl.sum(own * own, 1), eps)
    for member in tl.static_range(H // KV):
        query = token * H + head * (H // KV) + member
        place = (query * D)[:, None] + columns
        gate = tl.load(gates + query, mask=token < tokens, other=0.0).to(tl.float32)
        row = tl.load(y + place, mask=mask, other=0.0).to(tl.float32)
        share = tl.sum(row * own, 1) / length
        rest = gate[:, None] * (row - share[:, None] * own)
        tl.store(out + place, rest.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _without_value_back(
    y,
    v,
    gates,
    given,
    dy,
    dv,
    dgates,
    tokens,
    eps,
    H: tl.constexpr,
    KV: tl.constexpr,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
):
    head = tl.program_id(0)
    token = (tl.program_id(1) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    columns = tl.arange(0, BLOCK)[None, :]
    mask = (token < tokens)[:, None] & (columns < D)
    value = ((token * KV + head) * D)[:, None] + columns
    own = tl.load(v + value, mask=mask, other=0.0).to(tl.float32)
    square = tl.sum(own * own, 1)
    length = tl.maximum(square, eps)
    bends = tl.where(square > eps, 2.0, 0.0)  # 0 where the length is clamped at eps
    total = tl.zeros((ROWS, BLOCK), tl.float32)
    for member in tl.static_range(H // KV):
        query = token * H + head * (H // KV) + member
        place = (query * D)[:, None] + columns
        gate = tl.load(gates + query, mask=token < tokens, other=0.0).to(tl.float32)
        row = tl.load(y + place, mask=mask, other=0.0).to(tl.float32)
        gradient = tl.load(given + place, mask=mask, other=0.0).to(tl.float32)
        share = tl.sum(row * own, 1) / length
        rest = row - share[:, None] * own
        tl.store(dgates + query, tl.sum(gradient * rest, 1).to(dgates.dtype.element_ty), mask=token < tokens)
        gradient = gate[:, None] * gradient
        along = tl.sum(gradient * own, 1) / length
        tl.store(dy + place, (gradient - along[:, None] * own).to(dy.dtype.element_ty), mask=mask)
        total += (bends * share * along)[:, None] * own - share[:, None] * gradient - along[:, None] * row
    tl.store(dv + value, total.to(dv.dtype.element_ty), mask=mask)


def _launch(kernel: Any, *tensors: Tensor) -> None:
    """Run a kernel; the first two tensors have the shapes of queries and values."""
    (batch, length, heads, dim), kv_heads = tensors[0].shape, tensors[1].shape[2]
    grid = kv_heads, triton.cdiv(batch * length, ROWS)
    shape = {"H": heads, "KV": kv_heads, "D": dim, "BLOCK": triton.next_power_of_2(dim), "ROWS": ROWS}
    kernel[grid](*tensors, batch * length, EPS, **shape)


@torch.library.custom_op("underpar::without_value", mutates_args=())
def without_value(y: Tensor, v: Tensor, gates: Tensor) -> Tensor:
    """Return y minus its component along the value of its head's group, times its gate.

    Args:
        y: [B, T, H, d], contiguous like the others.
        v: [B, T, KV, d].
        gates: [B, T, H].
    """
    out = torch.empty_like(y)
    _launch(_without_value, y, v, gates, out)
    return out


@without_value.register_fake
def _(y: Tensor, v: Tensor, gates: Tensor) -> Tensor:
    return torch.empty_like(y)


@torch.library.custom_op("underpar::without_value_back", mutates_args=())
def without_value_back(y: Tensor, v: Tensor, gates: Tensor, given: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of y, v and the gates, from the gradient `given` of `without_value`."""
    dy, dv, dgates = torch.empty_like(y), torch.empty_like(v), torch.empty_like(gates)
    _launch(_without_value_back, y, v, gates, given, dy, dv, dgates)
    return dy, dv, dgates


@without_value_back.register_fake
def _(y: Tensor, v: Tensor, gates: Tensor, given: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(y), torch.empty_like(v), torch.empty_like(gates)


class WithoutValue(torch.autograd.Function):
    """`without_value` with its gradients."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, v: Tensor, gates: Tensor) -> Tensor:
        ctx.save_for_backward(y, v, gates)
        return without_value(y, v, gates)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return without_value_back(*ctx.saved_tensors, gradients[0].contiguous())


def fused_without_own_value(y: Tensor, v: Tensor, gates: Tensor | None) -> Tensor:
    """Compute `trainer.model.gpt.without_own_value`, times the gates, with gradients.

    Without gates, gates of 1 stand in: beside y they cost next to nothing.

    Args:
        y: [B, H, T, d].
        v: [B, KV, T, d].
        gates: [B, T, H], or None.
    """
    y, v = (heads.transpose(1, 2).contiguous() for heads in (y, v))
    gates = y.new_ones(y.shape[:3]) if gates is None else gates.contiguous()
    return WithoutValue.apply(y, v, gates).transpose(1, 2)
