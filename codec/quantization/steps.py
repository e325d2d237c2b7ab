"""Step sizes: a row factor times a column factor times one constant for all matrices.

A uniform quantizer of step D costs about g_r d_j D^2 / 24 nats for weight [r, j], with g the diagonal of the output
moment and d the squared diagonal of the input moment's factor (`codec.quantization.feedback`), and gains a bit for
each halving of D. Equal marginal cost everywhere gives D_rj = c (g_r d_j)^(-1/2) (reverse water-filling; WaterSIC 2026
for columns). Factors are rounded to quarter octaves, so that a factor costs a pack a few bits instead of 16.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

ROW_RANGE = 64.0
"""Row sensitivities are at least 1/64 of the positive ones' median: a row without gradient would get no bits."""

LARGEST = 160
"""Bound on an exponent: factors of 2^40 either way keep every step well inside float32."""


_TINY = 1e-38


@dataclass(frozen=True)
class Factors:
    """Exponents in quarter octaves of the row factors [R] and the column factors [C] of a matrix's steps."""

    rows: NDArray[np.int32]
    columns: NDArray[np.int32]


def factors(outputs: NDArray[np.floating], pivots: NDArray[np.floating]) -> Factors:
    """Return the factors of a matrix's steps.

    Args:
        outputs: sensitivities of the rows [R], 0 or more.
        pivots: sensitivities of the columns [C], 0 or more.
    """
    alive = outputs[outputs > 0]
    floor = max(float(np.median(alive)) / ROW_RANGE, _TINY) if alive.size else 1.0  # no sensitivity known: rows alike
    rows = -0.5 * np.log2(np.maximum(np.asarray(outputs, np.float64), floor))
    columns = -0.5 * np.log2(np.maximum(np.asarray(pivots, np.float64), _TINY))
    return Factors(_quarters(rows), _quarters(columns))


def _quarters(octaves: NDArray[np.float64]) -> NDArray[np.int32]:
    return np.rint(4 * octaves).clip(-LARGEST, LARGEST).astype(np.int32)
