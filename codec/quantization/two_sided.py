"""Two-sided error feedback: the errors of a matrix are made up for through its inputs and through its outputs.

An error E costs tr(G E H E^T) / 2 (`codec.quantization.calibration`). With H = V V^T and G = U U^T, both upper
triangular, that is the sum of the squares of S = U^T E V, and with a_ij = V_ij / V_jj and b_ij = U_ij / U_jj

    S_rj = U_rr V_jj (f_rj + sum_{p<r} b_pr f_pj),   f_rj = e_rj + sum_{i<j} a_ij e_ri.

So weight [r, j] is quantized at w_rj - sum_{i<j} a_ij e_ri - sum_{p<r} b_pr f_pj, which asks for errors above and to
the left of it only: the entries of an anti-diagonal do not depend on one another, and a trellis path runs along it.
(After YAQA, Tseng et al. 2025, which rounds with both factors; natural order, path and trellis are ours.)
"""

import numpy as np
from numpy.typing import NDArray

from codec.compiled import compiler
from codec.quantization.feedback import Codebook, Doubles, everything, to_integers

_TILE = 64
"""Feedback from more than a tile away is summed tile by tile in matrix products, the rest one by one."""


def quantize_diagonals(
    weights: Doubles, column_factor: Doubles, row_factor: Doubles, codebook: Codebook
) -> NDArray[np.int32]:
    """Integers of weights [R, C], with feedback from above and from the left.

    Args:
        column_factor: V [C, C] of `codec.quantization.feedback.upper_factor`.
        row_factor: U [R, R].
        codebook: its trellis path runs down one anti-diagonal after the other, beginning at [0, 0].
    """
    height, width = weights.shape
    left = np.ascontiguousarray((column_factor / np.diagonal(column_factor)).T)  # [j, i] = a_ij
    above = np.ascontiguousarray((row_factor / np.diagonal(row_factor)).T)  # [r, p] = b_pr
    errors = np.zeros((height, width))
    carried = np.zeros((height, width))  # what the errors to the left amount to
    passed = np.zeros((height, width))  # what f above amounts to
    residuals = np.zeros((width, height))  # f, transposed
    symbols = np.zeros((height, width), np.int32)
    c, before, on = codebook, codebook.before, codebook.on or everything(weights)
    state = 0
    for band in range(-(-(height + width - 1) // _TILE) if weights.size else 0):
        for tile in range(max(0, band - (width - 1) // _TILE), min(band, (height - 1) // _TILE) + 1):
            r, j = tile * _TILE, (band - tile) * _TILE
            near_r, near_j = max(0, r - _TILE), max(0, j - _TILE)
            here = np.s_[r : r + _TILE, j : j + _TILE]
            carried[here] = errors[r : r + _TILE, :near_j] @ left[j : j + _TILE, :near_j].T
            passed[here] = above[r : r + _TILE, :near_r] @ residuals[j : j + _TILE, :near_r].T
        last = min((band + 1) * _TILE, height + width - 1)
        state = _diagonals(
            band * _TILE, last, weights, left, above, c.rows, c.columns, before, *on, c.limit, state,
            errors, carried, passed, residuals, symbols,
        )  # fmt: skip
    return symbols


@compiler(nogil=True, fastmath={"reassoc", "contract"})
def _diagonals(
    begin, end, weights, left, above, rows, columns, before, on_rows, on_columns, limit, state,
    errors, carried, passed, residuals, symbols,
):  # fmt: skip
    """Quantize the anti-diagonals begin .. end - 1, whose far feedback is in `carried` and `passed`."""
    height, width = weights.shape
    for diagonal in range(begin, end):
        first, last = max(0, diagonal - width + 1), min(height - 1, diagonal)
        samples = np.empty(last - first + 1)
        for r in range(first, last + 1):
            j = diagonal - r
            total = carried[r, j]
            for i in range(max(0, j // _TILE * _TILE - _TILE), j):
                total += errors[r, i] * left[j, i]
            carried[r, j] = total
            upper = passed[r, j]
            for p in range(max(0, r // _TILE * _TILE - _TILE), r):
                upper += above[r, p] * residuals[j, p]
            samples[r - first] = (weights[r, j] - total - upper) / (rows[r] * columns[j])
        on = on_rows[first : last + 1] & on_columns[diagonal - last : diagonal - first + 1][::-1]
        integers, state = to_integers(samples, before, on, limit, state)
        for r in range(first, last + 1):
            j = diagonal - r
            symbols[r, j] = integers[r - first]
            errors[r, j] = symbols[r, j] * rows[r] * columns[j] - weights[r, j]
            residuals[j, r] = errors[r, j] + carried[r, j]
    return state
