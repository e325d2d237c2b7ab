"""Matrix products of 8-bit floats (e4m3, Micikevicius et al. 2022): on Hopper at twice the rate of bfloat16.

Operands are scaled row by row to the format's range, which costs no pass of its own: the scale of a row is known where
the row is computed, and a row's range is so narrow that gradients do not need the format with fewer bits of mantissa.
The gradients of the weights stay products of bfloat16: their operands would have to be transposed in memory first.
"""

from typing import Any

import torch
from torch import Tensor

E4M3 = torch.float8_e4m3fn


def rounded(x: Tensor) -> tuple[Tensor, Tensor]:
    """x [R, C] in 8 bits, and the float32 scales [R, 1] of its rows: x is about their product."""
    scales = x.abs().amax(1, keepdim=True).float().clamp_min(1e-12) / torch.finfo(E4M3).max
    return (x.float() / scales).to(E4M3), scales


def product(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor], dtype: torch.dtype) -> Tensor:
    """a [M, K] times the transpose of b [N, K], both with scales of their rows: `dtype` [M, N].

    Where there is no unit for it the same 8-bit numbers are multiplied in float32.
    """
    if a[0].is_cuda:
        return torch._scaled_mm(a[0], b[0].T, a[1], b[1].T, out_dtype=dtype, use_fast_accum=True)
    return ((a[0].float() @ b[0].float().T) * a[1] * b[1].T).to(dtype)


class Fp8Linear(torch.autograd.Function):
    """x [N, K] times the transpose of a matrix [M, K], in the dtype of x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, matrix: Tensor) -> Tensor:
        ctx.save_for_backward(x, matrix)
        return product(rounded(x), rounded(matrix), x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        x, matrix = ctx.saved_tensors
        (gradient,) = gradients
        towards_x = product(rounded(gradient), rounded(matrix.T.contiguous()), x.dtype)
        return towards_x, gradient.T @ x


def fp8_linear(x: Tensor, matrix: Tensor) -> Tensor:
    """`torch.nn.functional.linear` of x [..., K] and a matrix [M, K] of the same dtype, in 8 bits.

    K and M must be multiples of 16 on a GPU.
    """
    return Fp8Linear.apply(x.flatten(0, -2), matrix).unflatten(0, x.shape[:-1])
