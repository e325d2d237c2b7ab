"""The MLP with its squared rectifier inside the matrix products: Triton kernels for Hopper's tensor memory accelerator.

Between the two products, a compiler's kernels read and write 20 bytes for every hidden unit, forward and backward.
These kernels apply the rectifier to tiles of the products before the tiles leave the chip, and 8 bytes remain.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

UNIT = 64
"""The depth of a tile, which must divide all widths."""


@triton.jit
def _product(
    left,
    right,
    hidden,
    out,
    tokens,
    units,
    width: tl.constexpr,
    SLOPE: tl.constexpr,
    BACKWARD: tl.constexpr,
    DEPTH: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Compute a tile of left [tokens, width] times right: hidden units and their activation, or hidden gradients."""
    blocks = tl.cdiv(units, COLUMNS)
    row = tl.program_id(0) // blocks * ROWS
    column = tl.program_id(0) % blocks * COLUMNS
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for depth in range(0, width, DEPTH):
        a = left.load([row, depth])
        if BACKWARD:
            total = tl.dot(a, right.load([depth, column]), total)
        else:
            total = tl.dot(a, right.load([column, depth]).T, total)
    if BACKWARD:
        h = hidden.load([row, column]).to(tl.float32)
        out.store([row, column], (total * (2 * h * tl.where(h > 0, 1.0, SLOPE * SLOPE))).to(out.dtype))
    else:
        units_before = total.to(out.dtype)
        hidden.store([row, column], units_before)
        h = units_before.to(tl.float32)
        h = tl.where(h > 0, h, SLOPE * h)
        out.store([row, column], (h * h).to(out.dtype))


def _blocks(arguments: dict[str, Any]) -> None:
    """Set the descriptors' tile sizes."""
    rows, columns, depth = (arguments[name] for name in ("ROWS", "COLUMNS", "DEPTH"))
    arguments["left"].block_shape = [rows, depth]
    arguments["right"].block_shape = [depth, columns] if arguments["BACKWARD"] else [columns, depth]
    for name in ("hidden", "out"):
        arguments[name].block_shape = [rows, columns]


def _configuration(rows: int, columns: int, warps: int) -> triton.Config:
    sizes = {"ROWS": rows, "COLUMNS": columns, "DEPTH": UNIT}
    return triton.Config(sizes, num_stages=3, num_warps=warps, pre_hook=_blocks)


CONFIGURATIONS = [_configuration(128, 256, 8), _configuration(256, 128, 8), _configuration(128, 128, 4)]
"""Tiles that fit into a multiprocessor's memory, three steps deep: a GPU times each of them on its first product."""

_tuned = triton.autotune(CONFIGURATIONS, key=["tokens", "units", "width", "BACKWARD"])(_product)


def _launch(left: Tensor, right: Tensor, hidden: Tensor, out: Tensor, slope: float, backward: bool) -> None:
    (tokens, width), units = left.shape, out.shape[1]
    described = [TensorDescriptor.from_tensor(tensor, [1, UNIT]) for tensor in (left, right, hidden, out)]
    arguments = *described, tokens, units, width, slope, backward

    def grid(chosen: dict[str, int]) -> tuple[int]:
        return (triton.cdiv(tokens, chosen["ROWS"]) * triton.cdiv(units, chosen["COLUMNS"]),)

    if left.is_cuda:
        _tuned[grid](*arguments)
        return
    sizes = CONFIGURATIONS[0].kwargs  # Triton's interpreter times nothing
    _blocks(dict(zip(_product.arg_names, arguments, strict=False)) | sizes)
    _product[grid](*arguments, **sizes)


@torch.library.custom_op("underpar::mlp_up", mutates_args=())
def mlp_up(x: Tensor, up: Tensor, slope: float) -> tuple[Tensor, Tensor]:
    """Return h = x up^T and leaky_relu(h, slope)^2, both [N, units], of x [N, D] and up [units, D], all contiguous."""
    hidden, out = _up_shapes(x, up)
    _launch(x, up, hidden, out, slope, False)
    return hidden, out


@mlp_up.register_fake
def _(x: Tensor, up: Tensor, slope: float) -> tuple[Tensor, Tensor]:
    return _up_shapes(x, up)


def _up_shapes(x: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    return x.new_empty(len(x), len(up)), x.new_empty(len(x), len(up))


@torch.library.custom_op("underpar::mlp_back", mutates_args=())
def mlp_back(gradient: Tensor, down: Tensor, hidden: Tensor, slope: float) -> Tensor:
    """Return the gradient of h [N, units], from that of leaky_relu(h, slope)^2 down^T, [N, D]; down is [D, units]."""
    out = torch.empty_like(hidden)
    _launch(gradient, down, hidden, out, slope, True)
    return out


@mlp_back.register_fake
def _(gradient: Tensor, down: Tensor, hidden: Tensor, slope: float) -> Tensor:
    return torch.empty_like(hidden)


class FusedMLP(torch.autograd.Function):
    """leaky_relu(x up^T, slope)^2 down^T, with gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, up: Tensor, down: Tensor, slope: float) -> Tensor:
        hidden, active = mlp_up(x, up, slope)
        ctx.save_for_backward(x, up, down, hidden, active)
        ctx.slope = slope
        return active @ down.T

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, up, down, hidden, active = ctx.saved_tensors
        gradient = gradients[0].contiguous()
        back = mlp_back(gradient, down, hidden, ctx.slope)
        return back @ up, back.T @ x, gradient.T @ active, None


def fused_mlp(x: Tensor, up: Tensor, down: Tensor, slope: float) -> Tensor:
    """Return leaky_relu(x up^T, slope)^2 down^T of x [..., D], up [units, D] and down [D, units] of one dtype.

    D and the number of units must be multiples of UNIT.
    """
    return FusedMLP.apply(x.flatten(0, -2).contiguous(), up, down, slope).unflatten(0, x.shape[:-1])
