"""Weights to integers: pure functions from a float matrix to symbols and steps."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from codec.calibration import Moments
from codec.quantized import Quantized


class Quantizer(Protocol):
    """A strategy: finite weights float32 [R, C] and their moments to integers and steps."""

    def __call__(self, weights: NDArray[np.float32], moments: Moments) -> Quantized: ...


@dataclass(frozen=True)
class RowAbsmax:
    """Round to nearest with one step for each row, its largest absolute value / (2^(bits-1) - 1).

    Steps are float16 times one power of two for the matrix, so that they cost two bytes and never under- or overflow.
    Moments are not looked at.
    """

    bits: int  # 2 to 8

    def __call__(self, weights: NDArray[np.float32], moments: Moments) -> Quantized:
        """Quantize finite weights [R, C]."""
        limit = (1 << (self.bits - 1)) - 1
        steps = half_precision_steps(np.abs(weights).max(1, initial=0) / np.float32(limit))
        safe = np.where(steps > 0, steps, np.float32(1))
        symbols = np.rint(weights / safe[:, None]).clip(-limit, limit) * (steps > 0)[:, None]
        return Quantized(symbols.astype(np.int32), steps)


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
