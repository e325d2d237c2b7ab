"""The quantizer of budgets: steps by sensitivity, error feedback, a trellis where the rate is high enough for one."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from codec.calibration import Moments
from codec.feedback import Matrix, damped, quantize_columns, upper_factor
from codec.quantized import Quantized, StepGrid
from codec.steps import factors
from codec.trellis import search, transitions

TRELLIS_RATE = 2.0
"""Bits a weight below which a matrix gets no trellis: its union codebooks have no zero in half of the states."""

_LARGEST = 2.0**30

_GAUSSIAN = 2.047  # entropy in bits of a Gaussian over its standard deviation


@dataclass(frozen=True)
class SensitivityGrid:
    """Integers on steps `unit` times a row factor times a column factor (`codec.steps`), with error feedback.

    A whole step costs `unit` squared / 24 nats a weight, by the calibration's account.
    """

    unit: float
    states: int = 8  # of the trellis; 0: none

    def __call__(self, weights: NDArray[np.float32], moments: Moments) -> Quantized:
        """Quantize finite weights [R, C]. Raises FormatError for inputs' moments that are not positive semidefinite."""
        factor = upper_factor(damped(moments.inputs))
        chosen = factors(moments.outputs, np.diag(factor) ** 2)
        whole = StepGrid(self.unit, chosen.rows, chosen.columns)
        rates = row_rates(weights, whole)
        alive = len(rates) == len(weights) > 0  # a trellis would fill rows of zeros
        states = self.states if alive and np.maximum(rates, 0).mean() >= TRELLIS_RATE else 0
        grid = StepGrid(self.unit / 2, chosen.rows, chosen.columns) if states else whole
        steps = grid.row_steps()[:, None].astype(np.float64) * grid.column_steps()
        symbols = np.zeros(weights.shape, np.int32)
        following, state = transitions(states) if states else None, 0

        def column(j: int, target: Matrix) -> Matrix:
            nonlocal state
            samples = (target / steps[:, j]).clip(-_LARGEST, _LARGEST)  # int32; the coder refuses what is so large
            if following is None:
                symbols[:, j] = np.rint(samples)
            else:
                symbols[:, j], state = search(samples, following, state)
            return symbols[:, j] * steps[:, j]

        quantize_columns(weights.astype(np.float64), factor, column)
        return Quantized(symbols, grid.row_steps(), grid.column_steps(), states, grid)


def row_rates(weights: NDArray[np.float32], grid: StepGrid) -> NDArray[np.float64]:
    """Bits a weight that a uniform quantizer would need in each row that is not zero, as if rows were Gaussian.

    Rates below zero mean zero; they are left as they are so that another unit only adds to them.
    """
    deviations = np.sqrt(np.square(weights, dtype=np.float64).mean(1)) if weights.size else np.zeros(0)
    alive = deviations > 0
    columns = float(np.log2(grid.column_steps()).mean()) if alive.any() else 0.0
    return np.log2(deviations[alive] / grid.row_steps()[alive]) - columns + _GAUSSIAN


def unit_for(bits: float, matrices: Iterable[tuple[NDArray[np.float32], Moments]]) -> float:
    """The unit at which weights need about `bits` bits each; 1 where all of them are zero."""
    rates, widths, count = [], [], 0
    for weights, moments in matrices:
        chosen = factors(moments.outputs, np.diag(upper_factor(damped(moments.inputs))) ** 2)
        rates.append(row_rates(weights, StepGrid(1.0, chosen.rows, chosen.columns)))
        widths.append(np.full(len(rates[-1]), weights.shape[1]))
        count += weights.size
    rate, width = np.concatenate(rates), np.concatenate(widths)
    if not len(rate):
        return 1.0
    low, high = float(rate.min()) - bits - 64.0, float(rate.max())  # log2 of a unit that is too fine, and too coarse
    for _ in range(50):
        middle = (low + high) / 2
        if float((width * np.maximum(rate - middle, 0.0)).sum()) > bits * count:
            low = middle
        else:
            high = middle
    return float(2.0**high)
