"""A matrix as a pack keeps it: integers between a step for every row and, optionally, a step for every column."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

QUARTER = np.array([1.0, 1.1892071, 1.4142135, 1.6817929], np.float32)
"""2^(i/4) as float32: constants of the format, so never computed by a library."""


@dataclass(frozen=True)
class StepGrid:
    """Steps unit * 2^(rows[r] / 4) * 2^(columns[c] / 4), exponents in quarter octaves."""

    unit: float  # is rounded to float32
    rows: NDArray[np.int32]  # [R]
    columns: NDArray[np.int32]  # [C]

    def row_steps(self) -> NDArray[np.float32]:
        """float32 [R], the unit included."""
        return np.float32(self.unit) * power(self.rows)

    def column_steps(self) -> NDArray[np.float32]:
        """float32 [C]."""
        return power(self.columns)


def power(exponents: NDArray[np.int32]) -> NDArray[np.float32]:
    """2^(e/4) of exponents in quarter octaves, the same float32 on every machine."""
    return np.ldexp(QUARTER[exponents & 3], exponents >> 2)


class OnTrellis(NamedTuple):
    """Which rows and columns the trellis path visits: a weight that is nearly always 0 has no place on it."""

    rows: NDArray[np.bool_]  # [R]
    columns: NDArray[np.bool_]  # [C]

    @classmethod
    def everywhere(cls, rows: int, columns: int) -> "OnTrellis":
        """Visit every row and column."""
        return cls(np.ones(rows, np.bool_), np.ones(columns, np.bool_))


@dataclass(frozen=True)
class Quantized:
    """Weight [r, c] is rows[r] * symbols[r, c] * columns[c] (columns: all 1 where None).

    With a trellis of `states` states the symbols are in units of half a step, and those of `on` rows and columns are
    its path, down one column after the other; the others are even, whole steps. 0: no trellis. `grid` says how the
    steps are made, None: rows are float16 times a power of two.
    """

    symbols: NDArray[np.int32]  # [R, C]
    rows: NDArray[np.float32]  # [R]
    columns: NDArray[np.float32] | None = None  # [C]
    states: int = 0
    grid: StepGrid | None = None
    on: OnTrellis | None = None  # None: all rows and columns are

    def dequantize(self) -> NDArray[np.float32]:
        """The weights, float32 [R, C]."""
        weights = self.symbols.astype(np.float32) * self.rows[:, None]
        return weights if self.columns is None else weights * self.columns
