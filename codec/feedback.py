"""Error feedback: quantize a matrix column by column, and let later columns make up for the errors of earlier ones.

With H = E[x x^T] the second moment of a layer's input, an error e of a row costs e H e^T. H = V V^T with V upper
triangular makes that sum_j V_jj^2 t_j^2 with t_j = e_j + sum_{i<j} e_i V_ij / V_jj: column j is quantized at the target
w_j - sum_{i<j} e_i V_ij / V_jj, and its own rounding error counts with the weight d_j = V_jj^2 alone. This is GPTQ
(Frantar et al. 2022) in the form of LDLQ (Chee et al. 2023), in natural order.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from codec.errors import FormatError

Matrix = NDArray[np.float64]

DAMPING = 0.01
"""Share of the mean diagonal that is added to a moment's diagonal (weights.md: 0.001 was 0.027 bit worse)."""

_BLOCK = 64  # columns whose feedback is summed one by one; errors of whole blocks go through one matrix product


def damped(moment: NDArray[np.floating]) -> Matrix:
    """A second moment [n, n] with DAMPING of its mean diagonal added; the identity where it is zero."""
    moment = np.asarray(moment, np.float64)
    mean = float(np.trace(moment)) / max(1, len(moment))
    if not mean > 0:
        return np.eye(len(moment))
    return moment + DAMPING * mean * np.eye(len(moment))


def upper_factor(moment: Matrix) -> Matrix:
    """The upper triangular V with V V^T = moment [n, n]. Raises FormatError if it is not positive definite."""
    try:
        return np.ascontiguousarray(np.linalg.cholesky(moment[::-1, ::-1])[::-1, ::-1])
    except np.linalg.LinAlgError as error:
        raise FormatError("calibration: a moment is not positive definite; calibrate again") from error


def quantize_columns(weights: Matrix, factor: Matrix, quantize_column: Callable[[int, Matrix], Matrix]) -> Matrix:
    """Run `quantize_column` over columns with feedback.

    Args:
        weights: [R, C].
        factor: V [C, C] of `upper_factor`.
        quantize_column: maps (column number, target [R]) to the reconstruction [R].

    Returns:
        the reconstruction [R, C].
    """
    feedback = factor / np.diag(factor)
    errors = np.zeros_like(weights)
    for begin in range(0, weights.shape[1], _BLOCK):
        end = min(begin + _BLOCK, weights.shape[1])
        carried = errors[:, :begin] @ feedback[:begin, begin:end]
        for j in range(begin, end):
            target = weights[:, j] - carried[:, j - begin] - errors[:, begin:j] @ feedback[begin:j, j]
            errors[:, j] = quantize_column(j, target) - weights[:, j]
    return weights + errors
