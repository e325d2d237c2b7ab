"""The quantizer of budgets: steps by sensitivity, error feedback, a trellis where the rate is high enough for one."""

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
        fit = (
            weights.any(1).all() and expected_rate(weights, whole) >= TRELLIS_RATE
        )  # a trellis would fill rows of zeros
        states = self.states if fit else 0
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


def expected_rate(weights: NDArray[np.float32], grid: StepGrid) -> float:
    """Bits a weight that a uniform quantizer would need, as if every row were Gaussian."""
    deviations = np.sqrt(np.square(weights, dtype=np.float64).mean(1)) if weights.size else np.zeros(0)
    alive = deviations > 0
    if not alive.any():
        return 0.0
    columns = float(np.log2(grid.column_steps()).mean())
    rates = np.log2(deviations[alive] / grid.row_steps()[alive]) - columns + _GAUSSIAN
    return float(np.maximum(rates, 0.0).sum() / len(deviations))
