"""Multiply matrices exactly on tensor cores: operands and weights in signed 8-bit limbs, sums in 32 bits.

A product of two limbs is at most 2^14, so sums over 2^16 inputs fit 32 bits in any order. Weights of up to 8 bits have
one limb, other weights two. Few weights need the second, so products with it are of the blocks alone that hold some.
Operands of 15 bits have two limbs; the squares of an MLP without column steps have four.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from codec.backends.cuda.kernels.elementwise import PAIR_BITS, launch
from codec.errors import UnsupportedError
from codec.exact.model import ExactLinear
from codec.numerics.widths import LARGEST_WEIGHT, OPERAND

TILE = 128
"""Outputs of a tile. Rows and outputs of buffers are padded to multiples of this number."""

INPUTS = 64
"""Inputs of operands and weights are padded to multiples of this number."""

ROWS = 64
"""Rows of a tile.

Tiles of 64 and 128 rows, 64 and 128 inputs at once, 4 to 16 warps and 2 to 4 stages were measured on an H200 with the
matrices of the record pack. 64 rows by 128 inputs, 4 warps and 3 stages were fastest from 1,024 rows to 65,536: of
65,536 rows they take 0.74 to 0.78 of the time of 128 by 64, 8 warps and 3 stages.
"""

_PAIR_BITS = tl.constexpr(PAIR_BITS)
_MOST_INPUTS = 1 << 16


def padded(size: int, unit: int = TILE) -> int:
    """Round `size` up to a multiple of `unit`."""
    return -(-size // unit) * unit


@dataclass(frozen=True)
class Limbs:
    """A matrix for `multiply`, and the steps that the reader of a product multiplies with."""

    integers: Tensor  # int8 [1 or 2, R, K], padded
    blocks: Tensor  # int32 [R / TILE, K / inputs at once], of each tile of outputs the blocks with second limbs, first
    counts: Tensor  # int32 [R / TILE], how many these are
    rows: Tensor  # float64 [R]
    columns: Tensor | None  # float64 [K]
    operand_limbs: int
    wide: bool  # whether sums need 64 bits

    @property
    def outputs(self) -> int:
        """Return the number of outputs, padded."""
        return self.integers.shape[1]

    @property
    def inputs(self) -> int:
        """Return the number of inputs, padded."""
        return self.integers.shape[2]

    @property
    def at_once(self) -> int:
        """Return how many inputs a tile multiplies at once."""
        return self.inputs // self.blocks.shape[1]


def limbs(linear: ExactLinear, operand: int = OPERAND) -> Limbs:
    """Split a matrix into limbs.

    Args:
        linear: the matrix.
        operand: the largest operand, if the matrix has no column steps. With column steps, operands are snapped again.

    Raises:
        UnsupportedError: integers exceed LARGEST_WEIGHT, or the matrix has too many inputs. Packs of models made by
            this package have no such integers (`codec.quantization.sensitivity`).
    """
    integers = linear.symbols.to(torch.int32)
    rows, inputs = integers.shape
    peak = int(integers.abs().amax()) if integers.numel() else 0
    if peak > LARGEST_WEIGHT or inputs > _MOST_INPUTS:
        raise UnsupportedError(f"a matrix with integers up to {peak} and {inputs} inputs")
    weight = int(integers.abs().sum(1, dtype=torch.int64).amax())
    operand = operand if linear.columns is None else OPERAND
    low = ((integers + 128) & 255) - 128
    parts = torch.stack((low, (integers - low) >> 8) if peak > 127 else (low,)).to(torch.int8)
    whole = parts.new_zeros(len(parts), padded(rows), padded(inputs, INPUTS))
    whole[:, :rows, :inputs] = parts
    wide = operand > OPERAND or weight * operand >= 1 << 31
    at_once = INPUTS if whole.shape[2] % (2 * INPUTS) else 2 * INPUTS
    held = whole[-1].view(-1, TILE, whole.shape[2] // at_once, at_once).ne(0).any(3).any(1)
    blocks = held.to(torch.int8).argsort(dim=1, descending=True, stable=True).to(torch.int32)
    counts = held.sum(1, dtype=torch.int32)
    return Limbs(whole, blocks, counts, linear.rows, linear.columns, 2 if operand == OPERAND else 4, wide)


@triton.jit
def _multiply_kernel(
    x, w, blocks, counts, out, inputs, outputs, x_limb, w_limb, WEIGHT_LIMBS: tl.constexpr, WIDE: tl.constexpr,
    ADD: tl.constexpr, ROWS: tl.constexpr, OUTPUTS: tl.constexpr, INPUTS: tl.constexpr,
):  # fmt: skip
    """Compute out [rows, outputs] = x @ w.T; with ADD, plus 2^PAIR_BITS times the old `out`."""
    tiles = outputs // OUTPUTS
    row = (tl.program_id(0) // tiles).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    output = (tl.program_id(0) % tiles) * OUTPUTS + tl.arange(0, OUTPUTS)
    at = tl.arange(0, INPUTS)
    x_low = x + row[:, None] * inputs + at[None, :]
    w_low = w + output[None, :] * inputs + at[:, None]
    sum1 = tl.zeros((ROWS, OUTPUTS), tl.int32)
    sum2 = tl.zeros((ROWS, OUTPUTS), tl.int32)
    if WEIGHT_LIMBS == 2:
        tile = tl.program_id(0) % tiles
        blocks += tile * (inputs // INPUTS)
        for n in range(0, tl.load(counts + tile)):
            block = tl.load(blocks + n) * INPUTS
            weights = tl.load(w_low + w_limb + block)
            sum1 = tl.dot(tl.load(x_low + block), weights, sum1, out_dtype=tl.int32)
            sum2 = tl.dot(tl.load(x_low + x_limb + block), weights, sum2, out_dtype=tl.int32)
        if not WIDE:  # three sums at a time would not fit into registers; what overflows cancels out in the end
            sum1 += sum2 << 8
    sum0 = tl.zeros((ROWS, OUTPUTS), tl.int32)
    for _ in range(0, inputs, INPUTS):
        low, high = tl.load(x_low), tl.load(x_low + x_limb)
        weights = tl.load(w_low)
        sum0 = tl.dot(low, weights, sum0, out_dtype=tl.int32)
        sum1 = tl.dot(high, weights, sum1, out_dtype=tl.int32)
        x_low += INPUTS
        w_low += INPUTS
    offsets = row[:, None] * outputs + output[None, :]
    if WIDE:
        total = sum0.to(tl.int64) + (sum1.to(tl.int64) << 8) + (sum2.to(tl.int64) << 16)
        if ADD:
            total += tl.load(out + offsets) << _PAIR_BITS
        tl.store(out + offsets, total)
    else:
        tl.store(out + offsets, sum0 + (sum1 << 8))


def multiply(operand: Tensor, matrix: Limbs) -> Tensor:
    """Multiply operands with a matrix.

    Args:
        operand: int8 [limbs, N, K], N and K padded.
        matrix: the matrix [R, K].

    Returns:
        Exact integers [N, R], R padded: int64 if `matrix.wide`, else int32.
    """
    count, rows, inputs = operand.shape
    out = torch.empty(rows, matrix.outputs, dtype=torch.int64 if matrix.wide else torch.int32, device=operand.device)
    grid = (rows // ROWS * (matrix.outputs // TILE),)
    for pair in reversed(range(count // 2)):
        launch(
            _multiply_kernel, grid, operand[2 * pair], matrix.integers, matrix.blocks, matrix.counts, out, inputs,
            matrix.outputs, rows * inputs, matrix.outputs * inputs, WEIGHT_LIMBS=len(matrix.integers),
            WIDE=matrix.wide, ADD=pair < count // 2 - 1, ROWS=ROWS, OUTPUTS=TILE, INPUTS=matrix.at_once,
            num_warps=8 if matrix.wide else 4, num_stages=3,
        )  # fmt: skip
    return out
