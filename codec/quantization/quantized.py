"""A matrix as a pack stores it: integers, a step for every row and, optionally, a step for every column."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

QUARTER = np.array([1.0, 1.1892071, 1.4142135, 1.6817929], np.float32)
"""2^(i/4) as float32: constants of the format, so never computed by a library."""


TUNING = 256
"""Tunings are in units of 1 / TUNING of a step. Rounding trained steps to it costs 0.1 % of the divergence of
a model of 2.8 million weights at 2.6 bits; to 1/64, 0.8 %."""

MOST_TUNING = 127
"""Bound on a tuning: trained steps are at least half and at most 1.5 times the steps of the quantizer."""


class Tuning(NamedTuple):
    """Changes of the steps of rows and columns by training, in units of 1 / TUNING of each step."""

    rows: NDArray[np.int32]  # [R]
    columns: NDArray[np.int32]  # [C]


@dataclass(frozen=True)
class StepGrid:
    """Steps unit * 2^(rows[r] / 4) * 2^(columns[c] / 4), exponents in quarter octaves.

    With a tuning, row r's step is 1 + tuning.rows[r] / TUNING times as large, and column c's likewise.
    """

    unit: float  # rounded to float32 on use
    rows: NDArray[np.int32]  # [R]
    columns: NDArray[np.int32]  # [C]
    tuning: Tuning | None = None

    def row_steps(self) -> NDArray[np.float32]:
        """Return the row factors, the unit included: float32 [R]."""
        steps = np.float32(self.unit) * power(self.rows)
        return steps * _tuned(self.tuning.rows) if self.tuning else steps

    def column_steps(self) -> NDArray[np.float32]:
        """Return the column factors: float32 [C]."""
        steps = power(self.columns)
        return steps * _tuned(self.tuning.columns) if self.tuning else steps


def _tuned(tuning: NDArray[np.int32]) -> NDArray[np.float32]:
    return 1 + tuning.astype(np.float32) / np.float32(TUNING)


def power(exponents: NDArray[np.int32]) -> NDArray[np.float32]:
    """Return 2^(e/4) of exponents e in quarter octaves, the same float32 on every machine."""
    return np.ldexp(QUARTER[exponents & 3], exponents >> 2)


class OnTrellis(NamedTuple):
    """The rows and columns that the trellis path visits; weights that are nearly always 0 stay off the path."""

    rows: NDArray[np.bool_]  # [R]
    columns: NDArray[np.bool_]  # [C]

    @classmethod
    def everywhere(cls, rows: int, columns: int) -> "OnTrellis":
        """Visit every row and column."""
        return cls(np.ones(rows, np.bool_), np.ones(columns, np.bool_))


@dataclass(frozen=True)
class Quantized:
    """A quantized matrix: weight [r, c] is rows[r] * symbols[r, c] * columns[c].

    With a trellis, symbols are in units of half a step: the symbols of the rows and columns `on` form its path, down
    one column after the other, and all other symbols are even, whole steps.
    """

    symbols: NDArray[np.int32]  # [R, C]
    rows: NDArray[np.float32]  # [R]
    columns: NDArray[np.floating] | None = None  # [C]; None: all 1
    states: int = 0  # of the trellis; 0: no trellis
    grid: StepGrid | None = None  # the source of the steps; None: rows are float16 times a power of two
    on: OnTrellis | None = None  # None: all rows and columns

    @property
    def largest(self) -> int:
        """Return the largest absolute integer."""
        return max(int(self.symbols.max(initial=0)), -int(self.symbols.min(initial=0)))

    def dequantize(self) -> NDArray[np.float32]:
        """Return the weights, float32 [R, C]; those beyond float32 become its largest number."""
        with np.errstate(over="ignore"):
            weights = self.symbols.astype(np.float32) * self.rows[:, None]
            if self.columns is not None:
                weights *= self.columns
        if np.isfinite(weights).all():
            return weights
        columns = 1.0 if self.columns is None else self.columns.astype(np.float64)
        exact = self.symbols * self.rows.astype(np.float64)[:, None] * columns
        largest = float(np.finfo(np.float32).max)
        return np.nan_to_num(exact, posinf=largest, neginf=-largest).clip(-largest, largest).astype(np.float32)
