"""A matrix as a pack keeps it: integers between a step for every row and, optionally, a step for every column."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Quantized:
    """Weight [r, c] is rows[r] * symbols[r, c] * columns[c] (columns: all 1 where None)."""

    symbols: NDArray[np.int32]  # [R, C]
    rows: NDArray[np.float32]  # [R]
    columns: NDArray[np.float32] | None = None  # [C]

    def dequantize(self) -> NDArray[np.float32]:
        """The weights, float32 [R, C]."""
        weights = self.symbols.astype(np.float32) * self.rows[:, None]
        return weights if self.columns is None else weights * self.columns
