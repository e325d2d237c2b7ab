"""The quantizer for byte budgets: steps by sensitivity, error feedback, and a trellis at sufficient rates."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from codec.quantization.feedback import Codebook, Doubles, damped, pivots, quantize_columns, upper_factor
from codec.quantization.quantized import OnTrellis, Quantized, StepGrid
from codec.quantization.quantizers import Matrix
from codec.quantization.steps import Factors, factors

TRELLIS_RATE = 1.0
"""Bits a weight below which a row or a column is not on the trellis, whose union codebooks have no zero in half of the
states. On a Gaussian, 256 states save 0.25 bit at 1.2 to 2 bits, 0.2 at 1 bit and nothing at 0.6
(tests/codec/quantization/test_trellis.py). Worse, a trellis gives weights to units that no text uses: dead units that
the error of the matrix before woke up doubled the divergence of a small pack."""

_GAUSSIAN = 2.047  # entropy in bits of a Gaussian over its standard deviation


@dataclass(frozen=True)
class SensitivityGrid:
    """Integers on steps `unit` times a row factor times a column factor, with error feedback.

    `codec.quantization.steps` makes the factors. A whole step costs `unit` squared / 24 nats a weight, by the
    calibration's account.
    """

    unit: float
    states: int = 256  # of the trellis; 0: none
    feedback: bool = True  # whether later columns make up for the errors of earlier ones
    by_row: bool = True  # whether steps differ by row
    by_column: bool = True

    def __call__(self, matrix: Matrix) -> Quantized:
        """Quantize a matrix.

        Raises:
            FormatError: a moment is not positive semidefinite.
        """
        weights = matrix.weights
        factor = upper_factor(damped(matrix.moments.inputs))
        chosen = self._steps(matrix, factor)
        whole = StepGrid(self.unit, chosen.rows, chosen.columns)
        on = on_trellis(weights, whole) if self.states else None
        states = self.states if on and on.rows.any() and on.columns.any() else 0
        grid = StepGrid(self.unit / 2, chosen.rows, chosen.columns) if states else whole
        on = on if states else None
        exact = weights.astype(np.float64)
        rows, columns = grid.row_steps(), grid.column_steps()
        codebook = Codebook(rows.astype(np.float64), columns.astype(np.float64), states, on)
        symbols = quantize_columns(exact, factor if self.feedback else np.sqrt(pivots(factor)), codebook)
        return Quantized(symbols, rows, columns, states, grid, on)

    def rates(self, matrix: Matrix) -> NDArray[np.float64]:
        """Return `row_rates` on the steps of unit 1."""
        chosen = self._steps(matrix, upper_factor(damped(matrix.moments.inputs)))
        return row_rates(matrix.weights, StepGrid(1.0, chosen.rows, chosen.columns))

    def _steps(self, matrix: Matrix, factor: Doubles) -> Factors:
        """Compute step factors from the outputs' moments and the factor of the inputs'."""
        rows, columns = np.maximum(matrix.moments.row_weights.astype(np.float64), 0), pivots(factor)
        if not self.by_row:
            rows = np.full(len(rows), rows.mean() if rows.size else 1.0)
        if not self.by_column:
            columns = np.full(len(columns), columns.mean() if columns.size else 1.0)
        return factors(rows, columns)


def on_trellis(weights: NDArray[np.float32], grid: StepGrid) -> OnTrellis:
    """Return the rows and columns of weights [R, C] that would have TRELLIS_RATE on whole steps, as Gaussians."""
    squares = np.square(weights / grid.row_steps()[:, None] / grid.column_steps(), dtype=np.float64)
    least = 4.0 ** (TRELLIS_RATE - _GAUSSIAN)  # mean square, in whole steps
    rows, columns = (squares.sum(axis) / max(1, squares.shape[axis]) for axis in (1, 0))
    return OnTrellis(rows >= least, columns >= least)


def row_rates(weights: NDArray[np.float32], grid: StepGrid) -> NDArray[np.float64]:
    """Return the bits a weight that a uniform quantizer would need in each nonzero row, if rows were Gaussian.

    A rate below zero means zero bits. Such rates are returned as they are: another unit then only adds to them.
    """
    deviations = np.sqrt(np.square(weights, dtype=np.float64).mean(1)) if weights.size else np.zeros(0)
    alive = deviations > 0
    columns = float(np.log2(grid.column_steps()).mean()) if alive.any() else 0.0
    return np.log2(deviations[alive] / grid.row_steps()[alive]) - columns + _GAUSSIAN


def unit_for(bits: float, rates: Iterable[tuple[NDArray[np.float64], int]], weights: int) -> float:
    """Return the unit at which `weights` weights need about `bits` bits each; 1 if all weights are zero.

    Args:
        bits: a weight.
        rates: `SensitivityGrid.rates` and the number of columns of every matrix.
        weights: of all matrices, rows of zeros included.
    """
    found = list(rates)
    rate = np.concatenate([each for each, _ in found]) if found else np.zeros(0)
    if not len(rate):
        return 1.0
    width = np.concatenate([np.full(len(each), columns) for each, columns in found])
    low, high = float(rate.min()) - bits - 64.0, float(rate.max())  # log2 of units: too fine, too coarse
    for _ in range(50):
        middle = (low + high) / 2
        if float((width * np.maximum(rate - middle, 0.0)).sum()) > bits * weights:
            low = middle
        else:
            high = middle
    return float(2.0**high)
