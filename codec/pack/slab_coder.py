"""Code a slab of a tensor as a part, quantized or exact."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from codec.errors import FormatError
from codec.numerics.widths import LARGEST_WEIGHT
from codec.pack.parts.dtypes import FLOATS, matrix_shape, width_of
from codec.pack.parts.part import exact_part, quantized_part
from codec.pack.parts.planes import entropy
from codec.pack.parts.tensors import to_bytes
from codec.pack.plan import Item
from codec.quantization.calibration import Calibration, Moments, moments_of
from codec.quantization.quantized import Quantized
from codec.quantization.quantizers import Matrix, Quantizer
from codec.quantization.sensitivity import SensitivityGrid, unit_for

LEAST, MOST = 2.0**-100, 2.0**120
"""Bounds on the largest weight of a slab that is quantized: between these, all steps are normal float32 numbers."""


TOGETHER = 1 << 16
"""Weights whose errors are computed together."""

NEARLY = 200
"""Bytes that it may cost to keep a slab exactly: masks and tables of few values take hundreds of bytes either way."""


@dataclass(frozen=True)
class Slab:
    """A run of a tensor's elements: rows * columns of them, from `first` on."""

    item: Item
    first: int
    rows: int
    columns: int

    def of(self, flat: torch.Tensor) -> torch.Tensor:
        """Return the slab [rows, columns], given all elements [n] of the tensor."""
        return flat[self.first : self.first + self.rows * self.columns].view(self.rows, self.columns)


@dataclass(frozen=True)
class Coded:
    """A part, and the squared error of its weights over the mean square of the tensor."""

    part: bytes
    error: float


@dataclass(frozen=True)
class SlabCoder:
    """A coder of slabs with a quantizer.

    Attributes:
        quantizer: for slabs without a rate of their own.
        calibration: second moments by tensor name.
        scales: root mean squares by tensor name; without a calibration, errors count relative to these.
        may_be_exact: whether a slab is kept exactly where that takes fewer bytes.
        must_quantize: whether a slab that cannot be quantized is an error, as in models that compute with integers.
    """

    quantizer: Quantizer
    calibration: Calibration | None
    scales: dict[str, float]
    may_be_exact: bool
    must_quantize: bool

    def __call__(self, slab: Slab, tensor: torch.Tensor) -> Coded:
        """Code the slab `tensor` [rows, columns].

        Raises:
            FormatError: weights are not finite, and only finite weights can be kept.
        """
        item, width, floating = slab.item, width_of(slab.item.dtype), slab.item.dtype in FLOATS
        data = to_bytes(tensor)
        weights = None if item.how == "exact" else self._weights(slab, tensor)
        if weights is None:
            if floating and not item.listed and bool(torch.isnan(tensor).any()):
                raise FormatError(f"tensor {item.name}: has NaN; repair the checkpoint or list the tensor as lossless")
            return Coded(exact_part(data, width, floating), 0.0)
        try:
            matrix = matrix_of(slab, weights, self.calibration, self.scales.get(item.name))
            matrix = replace(matrix, limit=LARGEST_WEIGHT if self.must_quantize else None)
            quantized = self.quantizer(matrix) if item.bits is None else at_rate(matrix, item.bits)
            part = quantized_part(quantized)
        except FormatError as error:
            raise FormatError(f"tensor {item.name}: {error}") from error
        if self.may_be_exact and entropy(data, width, floating) <= 1.1 * len(part) + NEARLY:
            exact = exact_part(data, width, floating)
            if len(exact) <= len(part) + NEARLY:
                return Coded(exact, 0.0)
        scale = self.scales.get(item.name) or 1.0
        return Coded(part, squared_error(quantized, weights) / scale**2)

    def _weights(self, slab: Slab, tensor: torch.Tensor) -> NDArray[np.float32] | None:
        """Return the weights of a slab; None where the slab has to be kept exactly."""
        weights = tensor.float().numpy()
        finite = np.isfinite(weights)
        if self.must_quantize and not finite.all():
            row, column = np.argwhere(~finite)[0]
            raise FormatError(
                f"tensor {slab.item.name}: weight [{row + slab.first // max(1, slab.columns)}, {column}] is "
                f"{weights[row, column]}, expected finite weights; repair the checkpoint"
            )
        largest = float(np.abs(weights).max(initial=0))
        if self.must_quantize or not tensor.any():
            return weights
        return weights if finite.all() and LEAST <= largest <= MOST else None


def matrix_of(slab: Slab, weights: NDArray[np.float32], calibration: Calibration | None, scale: float | None) -> Matrix:
    """Return the input of a quantizer: the weights of a slab, with the slab's share of the tensor's moments."""
    item = slab.item
    if calibration is None:
        moments = moments_of(None, item.name, (slab.rows, slab.columns))
        return Matrix(item.name, item.role, weights, moments, scale or 1.0, True)
    found = moments_of(calibration, item.name, matrix_shape(item.shape))
    full = matrix_shape(item.shape)[1]
    row, column = divmod(slab.first, full) if full else (0, 0)
    inputs = found.inputs[(slice(column, column + slab.columns),) * found.inputs.ndim]
    moments = Moments(inputs, found.row_weights[row : row + slab.rows])
    return Matrix(item.name, item.role, weights, moments)


def squared_error(quantized: Quantized, weights: NDArray[np.float32]) -> float:
    """Return the squared error of a quantized matrix [R, C], computed a few rows at a time to save memory."""
    total = 0.0
    height = max(1, TOGETHER // max(1, weights.shape[1]))
    for begin in range(0, len(weights), height):
        rows = slice(begin, begin + height)
        few = replace(quantized, symbols=quantized.symbols[rows], rows=quantized.rows[rows])
        total += float(np.square(few.dequantize() - weights[rows], dtype=np.float64).sum())
    return total


def at_rate(matrix: Matrix, bits: float) -> Quantized:
    """Quantize a matrix to about `bits` bits a weight."""
    grid = SensitivityGrid(1.0)
    unit = unit_for(bits, [(grid.rates(matrix), matrix.weights.shape[1])], matrix.weights.size)
    return SensitivityGrid(unit)(matrix)
