"""The quantizer for byte budgets: steps by sensitivity, error feedback, and a trellis at sufficient rates."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from codec.quantization.feedback import Codebook, Doubles, damped, pivots, quantize_columns, upper_factor
from codec.quantization.quantized import OnTrellis, Quantized, StepGrid, power
from codec.quantization.quantizers import Matrix
from codec.quantization.steps import LARGEST, Factors, factors

TRELLIS_RATE = 1.0
"""Bits a weight below which a row or a column is not on the trellis, whose union codebooks have no zero in half of the
states. On a Gaussian, 256 states save 0.25 bit at 1.2 to 2 bits, 0.2 at 1 bit and nothing at 0.6
(tests/codec/quantization/test_trellis.py). Worse, a trellis gives weights to units that no text uses: dead units that
the error of the matrix before woke up doubled the divergence of a small pack."""

ENOUGH = 16
"""Weights of a row or a column from which their mean square says whether it is on the trellis; below, that of the
matrix does. A single row of a million weights paid 0.4 bit a weight to switch the trellis on and off."""

MOST_STEPS = float(1 << 20)
"""Whole steps that the largest weight has at most: an eighth of what the entropy coder takes."""

_GAUSSIAN = 2.047  # entropy in bits of a Gaussian over its standard deviation


@dataclass(frozen=True)
class SensitivityGrid:
    """Integers on steps `unit` times a row factor times a column factor, with error feedback.

    `codec.quantization.steps` makes the factors. A whole step costs `unit` squared / 24 nats a weight, by the
    calibration's account. Without one, `unit` is relative to the matrix's scale, and the weights are those of least
    squared error: all are multiplied by one factor, which is below 1 at low rates (the centroids of coarse cells lie
    nearer to zero). With one they are not: errors that are aligned with the weights add up from layer to layer.
    """

    unit: float
    states: int = 256  # of the trellis; 0: none
    feedback: bool = True  # whether later columns make up for the errors of earlier ones
    by_row: bool = True  # whether steps differ by row
    by_column: bool = True

    def __call__(self, matrix: Matrix) -> Quantized:
        """Quantize a matrix; where its integers have a bound, single rows or columns get larger steps to meet it.

        Raises:
            FormatError: a moment is not positive semidefinite.
        """
        factor = upper_factor(damped(matrix.moments.inputs))
        chosen = self._steps(matrix, factor)
        if matrix.limit is None:
            return self._on_steps(matrix, factor, chosen)
        most = matrix.limit / 4  # a trellis halves steps, and feedback moves weights
        while True:
            limited = coarser(chosen, matrix.weights / np.float32((matrix.scale or 1.0) * self.unit), most)
            found = self._on_steps(matrix, factor, limited)
            if found.largest <= matrix.limit or most < 1:
                return found
            most /= 2

    def _on_steps(self, matrix: Matrix, factor: Doubles, chosen: Factors) -> Quantized:
        """Quantize a matrix on the steps of `chosen`, given the factor of its inputs' moment."""
        weights = matrix.weights
        whole = StepGrid(self._unit(matrix, chosen), chosen.rows, chosen.columns)
        on = on_trellis(weights, whole) if self.states else None
        states = self.states if on and on.rows.any() and on.columns.any() else 0
        grid = replace(whole, unit=whole.unit / 2) if states else whole
        on = on if states else None
        exact = weights.astype(np.float64)
        rows, columns = grid.row_steps(), grid.column_steps()
        codebook = Codebook(rows.astype(np.float64), columns.astype(np.float64), states, on)
        symbols = quantize_columns(exact, factor if self.feedback else np.sqrt(pivots(factor)), codebook)
        if matrix.relative:
            grid = replace(grid, unit=grid.unit * gain(exact, symbols, rows, columns))
        return Quantized(symbols, grid.row_steps(), columns, states, grid, on)

    def rates(self, matrix: Matrix) -> NDArray[np.float64]:
        """Return `row_rates` on the steps of unit 1."""
        chosen = self._steps(matrix, upper_factor(damped(matrix.moments.inputs)))
        return row_rates(matrix.weights, StepGrid(matrix.scale or 1.0, chosen.rows, chosen.columns))

    def _unit(self, matrix: Matrix, chosen: Factors) -> float:
        """Return the matrix's own unit: coarser where the entropy coder could not tell its integers apart."""
        steps = np.log2(matrix.scale or 1.0) + chosen.rows.min(initial=1 << 14) / 4
        steps += chosen.columns.min(initial=1 << 14) / 4
        largest = float(np.abs(matrix.weights).max(initial=0))
        least = np.log2(largest) - np.log2(MOST_STEPS) - steps if largest else -np.inf
        return float(matrix.scale or 1.0) * max(self.unit, float(2.0 ** min(least, 200.0)))

    def _steps(self, matrix: Matrix, factor: Doubles) -> Factors:
        """Compute step factors from the outputs' moments and the factor of the inputs'."""
        rows, columns = np.maximum(matrix.moments.row_weights.astype(np.float64), 0), pivots(factor)
        if not self.by_row:
            rows = np.full(len(rows), rows.mean() if rows.size else 1.0)
        if not self.by_column:
            columns = np.full(len(columns), columns.mean() if columns.size else 1.0)
        return factors(rows, columns)


def coarser(found: Factors, weights: NDArray[np.float32], most: float) -> Factors:
    """Return factors with which no weight [R, C] has more than `most` whole steps of unit 1.

    Rows or columns, whichever are fewer, get larger steps. A few columns that read very large activations need it, as
    SmolLM2's have: 73,000 half steps for a weight at 4.5 bits a weight.

    >>> few = Factors(np.zeros(2, np.int32), np.zeros(3, np.int32))
    >>> coarser(few, np.array([[1, 9, 2], [3, 70, 2]], np.float32), 8.0).columns.tolist()
    [0, 13, 0]
    """
    sizes = np.abs(weights) / power(found.rows)[:, None] / power(found.columns)
    over = sizes > most
    if not over.any():
        return found
    by_row = over.any(1).sum() <= over.any(0).sum()
    excess = sizes.max(1 if by_row else 0).astype(np.float64) / most
    more = np.ceil(4 * np.log2(excess.clip(1.0, 2.0**LARGEST))).astype(np.int32)
    rows, columns = (found.rows + more, found.columns) if by_row else (found.rows, found.columns + more)
    return Factors(rows.clip(-LARGEST, LARGEST), columns.clip(-LARGEST, LARGEST))


def gain(
    weights: NDArray[np.float64], symbols: NDArray[np.int32], rows: NDArray[np.float32], columns: NDArray[np.float32]
) -> float:
    """Return the factor of least squared error for reconstructed weights; 1 where all are zero."""
    with np.errstate(over="ignore", invalid="ignore"):
        found = symbols * rows.astype(np.float64)[:, None] * columns
        square, product = float(np.square(found).sum()), float((found * weights).sum())
    return product / square if 0 < product < np.inf and 0 < square < np.inf else 1.0


def on_trellis(weights: NDArray[np.float32], grid: StepGrid) -> OnTrellis:
    """Return the rows and columns of weights [R, C] that would have TRELLIS_RATE on whole steps, as Gaussians."""
    squares = np.square(weights / grid.row_steps()[:, None] / grid.column_steps(), dtype=np.float64)
    least = 4.0 ** (TRELLIS_RATE - _GAUSSIAN)  # mean square, in whole steps
    rows, columns = (
        squares.mean(axis) if squares.shape[axis] >= ENOUGH else np.full(squares.shape[1 - axis], _mean(squares))
        for axis in (1, 0)
    )
    return OnTrellis(rows >= least, columns >= least)


def _mean(values: NDArray[np.floating]) -> float:
    return float(values.mean()) if values.size else 0.0


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
