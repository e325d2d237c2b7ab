"""Weights to integers, the simple ways: what a quantizer is, and those that look at the weights alone."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from codec.model.parameters import Role
from codec.quantization.calibration import Moments
from codec.quantization.quantized import Quantized


@dataclass(frozen=True)
class Matrix:
    """What a quantizer is given: finite weights float32 [R, C] of a tensor, and their moments."""

    name: str
    role: Role
    weights: NDArray[np.float32]
    moments: Moments


class Quantizer(Protocol):
    """A pure function from a matrix to integers and steps."""

    def __call__(self, matrix: Matrix) -> Quantized: ...


Strategy = Callable[[float], Quantizer]
"""Quantizers by their unit: the larger, the coarser and the smaller the pack. A budget is met by choosing the unit."""


@dataclass(frozen=True)
class RowAbsmax:
    """Round to nearest with one step for each row, its largest absolute value / (2^(bits-1) - 1).

    Steps are float16 times one power of two for the matrix, so that they cost two bytes and never under- or overflow.
    """

    bits: int  # 2 to 8

    def __call__(self, matrix: Matrix) -> Quantized:
        limit = (1 << (self.bits - 1)) - 1
        largest = np.abs(matrix.weights).max(1, initial=0)
        return nearest(matrix.weights, half_precision_steps(largest / np.float32(limit)), limit)


@dataclass(frozen=True)
class Nearest:
    """Round to nearest with one step for the whole matrix: `unit` times the root of its mean square."""

    unit: float

    def __call__(self, matrix: Matrix) -> Quantized:
        step = self.unit * root_mean_square(matrix.weights)
        return nearest(matrix.weights, half_precision_steps(np.full(len(matrix.weights), step, np.float32)))


@dataclass(frozen=True)
class Ternary:
    """-1, 0 and 1 times the mean magnitude of each row's weights that are not rounded to 0.

    What is below half of the row's mean magnitude is 0 (BitNet b1.58, Ma et al. 2024, by row).
    """

    def __call__(self, matrix: Matrix) -> Quantized:
        sizes = np.abs(matrix.weights)
        mean = sizes.mean(1, keepdims=True) if sizes.size else np.zeros((len(sizes), 1), np.float32)
        symbols = (np.sign(matrix.weights) * (sizes > 0.5 * mean)).astype(np.int32)
        return Quantized(symbols, half_precision_steps(_mean_magnitude(sizes, symbols != 0)))


@dataclass(frozen=True)
class Binary:
    """The sign times the row's mean magnitude (XNOR-Net, Rastegari et al. 2016, by row); weights of 0 stay 0."""

    def __call__(self, matrix: Matrix) -> Quantized:
        symbols = np.sign(matrix.weights).astype(np.int32)
        return Quantized(symbols, half_precision_steps(_mean_magnitude(np.abs(matrix.weights), symbols != 0)))


def nearest(weights: NDArray[np.float32], steps: NDArray[np.float32], limit: int = 1 << 22) -> Quantized:
    """Weights [R, C] over their rows' steps [R], rounded and clipped to -limit .. limit; 0 where the step is."""
    safe = np.where(steps > 0, steps, np.float32(1))
    symbols = np.rint(weights / safe[:, None]).clip(-limit, limit) * (steps > 0)[:, None]
    return Quantized(symbols.astype(np.int32), steps)


def root_mean_square(weights: NDArray[np.float32]) -> float:
    """Of all weights; 0 for none."""
    return float(np.sqrt(np.square(weights, dtype=np.float64).mean())) if weights.size else 0.0


def _mean_magnitude(sizes: NDArray[np.float32], kept: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Of the kept weights of each row: float32 [R]."""
    return ((sizes * kept).sum(1) / np.maximum(kept.sum(1), 1)).astype(np.float32)


def step_exponent(steps: NDArray[np.float32]) -> int:
    """The power of two that float16 steps are relative to: 2^(exponent-1) < max(steps) <= 2^exponent."""
    mantissa, exponent = np.frexp(steps.max(initial=0))
    return int(exponent) - bool(mantissa == 0.5)


def half_precision_steps(steps: NDArray[np.float32]) -> NDArray[np.float32]:
    """Steps [R] rounded to float16 times 2^step_exponent; upwards among float16's subnormals, which are so far apart
    that a step rounded down would clip its row, or be zero."""
    exponent = step_exponent(steps)
    scaled = np.ldexp(steps.astype(np.float64), -exponent)
    halves = scaled.astype(np.float16)
    clipping = (halves < scaled) & (scaled < np.finfo(np.float16).smallest_normal)
    halves = np.where(clipping, np.nextafter(halves, np.float16(1)), halves)
    return np.ldexp(halves.astype(np.float32), exponent)
