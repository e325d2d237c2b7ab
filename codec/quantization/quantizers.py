"""The protocol of a quantizer, and the simple quantizers, which look at the weights alone."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from codec.model.parameters import Role
from codec.quantization.calibration import Moments
from codec.quantization.quantized import Quantized, StepGrid, power


@dataclass(frozen=True)
class Matrix:
    """The input of a quantizer: finite weights float32 [R, C] of a tensor, and their moments.

    `scale` is 1 where moments say what an error costs in nats. Without a calibration errors are `relative`: `scale` is
    the root mean square of the tensor, so that tensors of small numbers keep as much as those of large ones. `limit`
    bounds the integers, where compiled kernels multiply them; None: any integer will do.
    """

    name: str
    role: Role
    weights: NDArray[np.float32]
    moments: Moments
    scale: float = 1.0
    relative: bool = False
    limit: int | None = None


class Quantizer(Protocol):
    """A pure function from a matrix to integers and steps."""

    def __call__(self, matrix: Matrix) -> Quantized: ...


Strategy = Callable[[float], Quantizer]
"""A quantizer for each unit. A larger unit gives coarser steps and a smaller pack; a budget is met by its choice."""


@dataclass(frozen=True)
class RowAbsmax:
    """Rounding to nearest with one step for each row, its largest absolute value / (2^(bits-1) - 1).

    Steps are float16 times one power of two for the matrix, so that a step costs two bytes and never under- or
    overflows.
    """

    bits: int  # 2 to 8

    def __call__(self, matrix: Matrix) -> Quantized:
        """Quantize a matrix."""
        limit = (1 << (self.bits - 1)) - 1
        largest = np.abs(matrix.weights).max(1, initial=0)
        return nearest(matrix.weights, half_precision_steps(largest / np.float32(limit)), limit)


@dataclass(frozen=True)
class RowOctaves:
    """`RowAbsmax` with steps rounded up to quarter octaves.

    A row then costs 3 to 5 bits for its step in place of 16, which is what narrow matrices spend most on, and rows may
    be 2^127 times as large as others.
    """

    bits: int  # 2 to 8

    def __call__(self, matrix: Matrix) -> Quantized:
        """Quantize a matrix."""
        largest = np.abs(matrix.weights).max(1, initial=0).astype(np.float64) / ((1 << (self.bits - 1)) - 1)
        least = float(largest[largest > 0].min(initial=np.inf))
        exponents = np.full(len(largest), np.ceil(4 * np.log2(least)) if least < np.inf else 0.0)
        np.log2(largest, out=exponents, where=largest > 0)
        exponents[largest > 0] = np.ceil(4 * exponents[largest > 0] - 1e-4)
        rows = exponents.astype(np.int32)
        grid = StepGrid(1.0, rows, np.zeros(matrix.weights.shape[1], np.int32))
        steps = power(rows)
        scaled = matrix.weights / steps[:, None]
        symbols = np.rint(scaled, out=scaled).astype(np.int32)
        return Quantized(symbols, grid.row_steps(), grid.column_steps(), 0, grid)


@dataclass(frozen=True)
class Nearest:
    """Rounding to nearest with one step for the whole matrix: `unit` times the root mean square of its weights."""

    unit: float

    def __call__(self, matrix: Matrix) -> Quantized:
        """Quantize a matrix."""
        step = self.unit * root_mean_square(matrix.weights)
        return nearest(matrix.weights, half_precision_steps(np.full(len(matrix.weights), step, np.float32)))


@dataclass(frozen=True)
class Ternary:
    """Rounding to -1, 0 or 1 times the mean magnitude of a row's weights that do not become 0.

    Weights below half of the row's mean magnitude become 0 (BitNet b1.58, Ma et al. 2024, by row).
    """

    def __call__(self, matrix: Matrix) -> Quantized:
        """Quantize a matrix."""
        sizes = np.abs(matrix.weights)
        mean = sizes.mean(1, keepdims=True) if sizes.size else np.zeros((len(sizes), 1), np.float32)
        symbols = (np.sign(matrix.weights) * (sizes > 0.5 * mean)).astype(np.int32)
        return Quantized(symbols, half_precision_steps(_mean_magnitude(sizes, symbols != 0)))


@dataclass(frozen=True)
class Binary:
    """Rounding to the sign times the row's mean magnitude (XNOR-Net, Rastegari et al. 2016, by row); 0 stays 0."""

    def __call__(self, matrix: Matrix) -> Quantized:
        """Quantize a matrix."""
        symbols = np.sign(matrix.weights).astype(np.int32)
        return Quantized(symbols, half_precision_steps(_mean_magnitude(np.abs(matrix.weights), symbols != 0)))


def nearest(weights: NDArray[np.float32], steps: NDArray[np.float32], limit: int = 1 << 22) -> Quantized:
    """Round weights [R, C] over their rows' steps [R] and clip to -limit .. limit; 0 where the step is 0."""
    safe = np.where(steps > 0, steps, np.float32(1))
    symbols = np.rint(weights / safe[:, None]).clip(-limit, limit) * (steps > 0)[:, None]
    return Quantized(symbols.astype(np.int32), steps)


def root_mean_square(weights: NDArray[np.float32]) -> float:
    """Return the root mean square of all weights; 0 without weights."""
    return float(np.sqrt(np.square(weights, dtype=np.float64).mean())) if weights.size else 0.0


def _mean_magnitude(sizes: NDArray[np.float32], kept: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Return the mean magnitude of the kept weights of each row: float32 [R]."""
    return ((sizes * kept).sum(1) / np.maximum(kept.sum(1), 1)).astype(np.float32)


def step_exponent(steps: NDArray[np.float32]) -> int:
    """Return the power of two to which float16 steps are relative: 2^(exponent-1) < max(steps) <= 2^exponent."""
    mantissa, exponent = np.frexp(steps.max(initial=0))
    return int(exponent) - bool(mantissa == 0.5)


def half_precision_steps(steps: NDArray[np.float32]) -> NDArray[np.float32]:
    """Round steps [R] to float16 times 2^step_exponent.

    The subnormal numbers of float16 are far apart: a step rounded down would clip its row, or be 0. So steps among them
    are rounded up.
    """
    exponent = step_exponent(steps)
    scaled = np.ldexp(steps.astype(np.float64), -exponent)
    halves = scaled.astype(np.float16)
    clipping = (halves < scaled) & (scaled < np.finfo(np.float16).smallest_normal)
    halves = np.where(clipping, np.nextafter(halves, np.float16(1)), halves)
    return np.ldexp(halves.astype(np.float32), exponent)
