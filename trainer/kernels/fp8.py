"""Matrix products of 8-bit floats (Micikevicius et al. 2022): on Hopper at up to twice the rate of bfloat16.

Operands are multiplied by constants before they are rounded, so that any kernel that computes an operand can also write
it rounded. Measured scales would cost those kernels a reduction, and with it the gain of the products. A float's
relative rounding error is the same in all of the format's range, so a constant need only be right to some powers of
two:

- The inputs of a block's products are normalised, an average of values or a square of a few units: about 1. The format
  e4m3 reaches from 2^-9 to 448, so inputs have no constant.
- Entries of matrices are about 2^-5 from their initialisation to the end of Muon's training. Matrices that begin at 0
  are well within the range after ten steps.
- Gradients of a mean over N tokens are a small part of 1 / N. They differ most, between layers and in time, and take
  e5m2, with one bit of mantissa less, which reaches from 2^-16 to 57344. The error of a gradient towards x is then 1.6
  times as large as with e4m3. The error of a model's gradients is 1.1 times as large, as most of it comes from the
  forward pass.

Numbers beyond the range are clamped to its end. The gradients of the weights stay products of bfloat16: their operands
would have to be transposed in memory first.
"""

from typing import Any

import torch
from torch import Tensor

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2

MATRIX_SCALE = 2.0**6
"""Factor of the entries of matrices. The entries of a trained `record` reach 1.5, and 7 is the limit."""

GRADIENT_SCALE = 2.0**8
"""Factor of gradients, beside the number of rows.

Measured in `record` with 8 micro-batches: the root mean squares of gradients of the residual stream are then at least
2^-9 from the first step on. At the end, those of all gradients are 2^-3 to 2^2, and the largest entry of a thousand
tokens is 2^7. In the first steps, while the last matrices of blocks are near 0, gradients inside blocks are below the
range, and so is their part of the stream's gradients; the weights there take the gradients unrounded.
"""


def rounded(x: Tensor, scale: float = 1.0, kind: torch.dtype = E4M3) -> Tensor:
    """Return x times scale in 8 bits, clamped to the format's range."""
    limit = torch.finfo(kind).max
    return (x.float() * scale).clamp(-limit, limit).to(kind)


def product(a: Tensor, b: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
    """Return a [M, K] times the transpose of b [N, K], both in 8 bits, divided by scale: `dtype` [M, N].

    A GPU sums in its fast mode, with fewer bits than float32 but many more than the operands have. A device without
    such a unit multiplies the same 8-bit numbers in float32.
    """
    if a.is_cuda:
        of_a, of_b = (torch.full((), factor, device=a.device) for factor in (1 / scale, 1.0))
        return torch._scaled_mm(a, b.T, of_a, of_b, out_dtype=dtype, use_fast_accum=True)
    return ((a.float() @ b.float().T) / scale).to(dtype)


class Fp8Linear(torch.autograd.Function):
    """The product of x [N, K] and the transpose of a matrix [M, K], in the dtype of x."""

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
    """Compute `torch.nn.functional.linear` of x [..., K] and a matrix [M, K] of the same dtype, in 8 bits.

    Gradients are those of a mean over the rows of x. K and M must be multiples of 16 on a GPU.
    """
    return Fp8Linear.apply(x.flatten(0, -2), matrix).unflatten(0, x.shape[:-1])
