"""Matrix products of 8-bit floats (Micikevicius et al. 2022): on Hopper at up to twice the rate of bfloat16.

Operands are multiplied with constants before they are rounded, so that rounding is one more number written by whatever
kernel computes them; scales found by measuring would cost those kernels a reduction, and with it what the products
gain. A float's rounding error is the same share of it wherever it lies in the format's range, so a constant need only
be right to some powers of two:

- What a block multiplies is normalised, an average of values or a square of a few units: about 1, and e4m3 reaches from
  2^-9 to 448. It is taken as it is.
- Entries of matrices are about 2^-5 from their initialisation to the end of Muon's training; those that begin at 0 are
  well within the range after ten steps.
- Gradients of a mean over N tokens are a small part of 1 / N. They differ most, between layers and in time, and take
  e5m2, with one bit of mantissa less, which reaches from 2^-16 to 57344. That makes the error of a gradient towards x
  1.6 times as large as e4m3 would, and that of a model's gradients 1.1 times, as most of it comes from the way forward.

Beyond the range numbers are held at its end. The gradients of the weights stay products of bfloat16: their operands
would have to be transposed in memory first.
"""

from typing import Any

import torch
from torch import Tensor

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2

MATRIX_SCALE = 2.0**6
"""What entries of matrices are multiplied with: those of a trained `record` reach 1.5, and may reach 7."""

GRADIENT_SCALE = 2.0**8
"""What gradients are multiplied with beside the number of rows.

In `record`, with 8 micro-batches, root mean squares of gradients of the residual stream then are at least 2^-9 from the
first step on, and at the end those of all gradients are 2^-3 to 2^2, with 2^7 the largest of a thousand tokens. In the
first steps, when the last matrices of blocks are still near 0, gradients inside blocks are below the range, and so is
what they add to the stream's; the weights there take them as they are.
"""


def rounded(x: Tensor, scale: float = 1.0, kind: torch.dtype = E4M3) -> Tensor:
    """x times scale in 8 bits, held within the format's range."""
    limit = torch.finfo(kind).max
    return (x.float() * scale).clamp(-limit, limit).to(kind)


def product(a: Tensor, b: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
    """a [M, K] times the transpose of b [N, K], both in 8 bits, divided by scale: `dtype` [M, N].

    A GPU adds up in its fast mode, with fewer bits than float32 but many more than the operands have. Where there is
    no unit for it the same 8-bit numbers are multiplied in float32.
    """
    if a.is_cuda:
        of_a, of_b = (torch.full((), factor, device=a.device) for factor in (1 / scale, 1.0))
        return torch._scaled_mm(a, b.T, of_a, of_b, out_dtype=dtype, use_fast_accum=True)
    return ((a.float() @ b.float().T) / scale).to(dtype)


class Fp8Linear(torch.autograd.Function):
    """x [N, K] times the transpose of a matrix [M, K], in the dtype of x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, matrix: Tensor) -> Tensor:
        ctx.save_for_backward(x, matrix)
        return product(rounded(x), rounded(matrix, MATRIX_SCALE), MATRIX_SCALE, x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        x, matrix = ctx.saved_tensors
        (gradient,) = gradients
        scale = GRADIENT_SCALE * 2.0 ** len(x).bit_length()  # a power of two, by which dividing is exact
        turned = rounded(matrix.T, MATRIX_SCALE).contiguous()
        towards_x = product(rounded(gradient, scale, E5M2), turned, scale * MATRIX_SCALE, x.dtype)
        return towards_x, gradient.T @ x


def fp8_linear(x: Tensor, matrix: Tensor) -> Tensor:
    """`torch.nn.functional.linear` of x [..., K] and a matrix [M, K] of the same dtype, in 8 bits.

    Gradients are those of a mean over the rows of x. K and M must be multiples of 16 on a GPU.
    """
    return Fp8Linear.apply(x.flatten(0, -2), matrix).unflatten(0, x.shape[:-1])
