"""Multiply snapped rows with small integers: the matrices of a pack, and gates."""

from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from codec.exact.weights import check_sums, gate_matrix
from codec.model.config import GATE_INPUTS
from codec.numerics import random_map, tables
from codec.numerics.fixed_point import snap
from codec.numerics.widths import OPERAND
from codec.quantization.quantized import Quantized


class ExactLinear:
    """A matrix product of snapped rows with the integers of a pack."""

    def __init__(self, name: str, weights: Quantized, operand: int, device: torch.device):
        check_sums(name, weights, operand)
        self.symbols = torch.from_numpy(weights.symbols.astype(np.int16 if _narrow(weights) else np.int32)).to(device)
        self.rows = torch.from_numpy(weights.rows).to(device, torch.float64)
        self.columns = None if weights.columns is None else torch.from_numpy(weights.columns).to(device, torch.float64)

    @cached_property
    def integers(self) -> Tensor:
        """The matrix transposed, float64 [C, R]: made when the reference first runs, which a fast backend may not."""
        return self.symbols.T.to(torch.float64).contiguous()

    def __call__(self, x: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
        """Multiply the rows x * step with the matrix.

        Args:
            x: float64 [..., C], integers.
            step: float64 [..., 1], the rows' steps.

        Returns:
            (y, step'), float64 [..., R] and [..., 1]. The product is y * step'; y includes the matrix's row steps.
        """
        if self.columns is not None:
            x, finer = snap(x * self.columns)
            step = step * finer
        return (x @ self.integers) * self.rows, step


def _narrow(weights: Quantized) -> bool:
    """Tell whether integers have 16 bits."""
    return weights.largest < 1 << 15


class ExactRandomMap(ExactLinear):
    """A fixed random map whose rows are scaled, plus the product of two learned matrices.

    Args:
        name: the matrix's name, for errors.
        number: the map's number (`codec.numerics.random_map`).
        scale: the scales of the map's rows, any float dtype.
        inner: the first learned matrix.
        outer: the second learned matrix.
        operand: the largest integer of a row that is multiplied.
        device: where to compute.
    """

    def __init__(
        self,
        name: str,
        number: int,
        scale: NDArray[np.floating],
        inner: Quantized,
        outer: Quantized,
        operand: int,
        device: torch.device,
    ):
        signs = random_map.signs(number, len(scale), inner.symbols.shape[1])
        super().__init__(name, Quantized(signs.astype(np.int32), scale.astype(np.float32)), operand, device)
        self.inner = ExactLinear(f"{name}.inner.weight", inner, operand, device)
        self.outer = ExactLinear(f"{name}.outer.weight", outer, OPERAND, device)

    def __call__(self, x: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
        """Multiply as `ExactLinear` does; the step returned is 1."""
        fixed, fixed_step = super().__call__(x, step)
        low, low_step = self.inner(x, step)
        learned, learned_step = self.outer(*snap(low * low_step))
        return fixed * fixed_step + learned * learned_step, torch.ones_like(step)


def transposed(weights: Quantized) -> Quantized:
    """Transpose a matrix: row steps become column steps."""
    ones = np.ones(weights.symbols.shape[1], np.float32)
    return Quantized(weights.symbols.T, ones if weights.columns is None else weights.columns, weights.rows)


class ExactTable:
    """The rows of an embedding or hash table."""

    def __init__(self, weights: Quantized, device: torch.device):
        self.symbols = torch.from_numpy(weights.symbols.astype(np.int16 if _narrow(weights) else np.int32)).to(device)
        self.rows = torch.from_numpy(weights.rows).to(device, torch.float64)
        self.columns = None if weights.columns is None else torch.from_numpy(weights.columns).to(device, torch.float64)

    def __call__(self, numbers: Tensor) -> Tensor:
        """Look up the rows float64 [..., C] with the numbers int64 [...]."""
        x = self.symbols[numbers].to(torch.float64) * self.rows[numbers][..., None]
        return x if self.columns is None else x * self.columns


class ExactGate:
    """Sigmoids of products of the first GATE_INPUTS entries of a normalised row with vectors.

    Args:
        name: the gates' name, for errors.
        vectors: [gates, GATE_INPUTS], any float dtype.
        device: where to compute.
    """

    def __init__(self, name: str, vectors: NDArray[np.floating], device: torch.device):
        self.linear = ExactLinear(name, gate_matrix(vectors), OPERAND, device)
        self.table = torch.from_numpy(tables.sigmoid_table() / (1 << tables.SIGMOID_BITS)).to(device)

    def __call__(self, x: Tensor, step: Tensor) -> Tensor:
        """Compute gates [..., gates], multiples of 2^-SIGMOID_BITS from 0 to 1, from the rows x * step [..., dim]."""
        y, step = self.linear(x[..., :GATE_INPUTS], step)
        return sigmoid(y * step, self.table)


def sigmoid(x: Tensor, table: Tensor) -> Tensor:
    """Look up 1 / (1 + e^-x) of float64 x in a table (`tables.sigmoid_table`, in units of 1)."""
    index = torch.round(x.abs() * float(tables.SIGMOID_GRID)).clamp(max=float(len(table) - 1))
    found = table[index.to(torch.int64)]
    return torch.where(x < 0, 1.0 - found, found)
