"""Error feedback: quantize a matrix column by column; later columns make up for the errors of earlier columns.

With H = E[x x^T] the second moment of a layer's input, an error e of a row costs e H e^T. With H = V V^T and V upper
triangular, that is sum_j V_jj^2 t_j^2 with t_j = e_j + sum_{i<j} e_i V_ij / V_jj. So column j is quantized at the
target w_j - sum_{i<j} e_i V_ij / V_jj, and its own rounding error counts with the weight d_j = V_jj^2 alone. This is
GPTQ (Frantar et al. 2022) in the form of LDLQ (Chee et al. 2023), in natural order, so that no order has to be sent.
"""

from contextlib import suppress
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from codec.compiled import compiler, making
from codec.errors import FormatError
from codec.quantization.quantized import OnTrellis
from codec.quantization.trellis import predecessors, search

Doubles = NDArray[np.float64]

DAMPING = 0.01
"""Share of the mean diagonal that is added to a moment's diagonal. A model of 36 million parameters needs 1 and 5 %
more bytes at equal divergence with 0.03 and 0.1, and a prototype needed 0.027 bit a weight more with 0.001."""

LARGEST = 1 << 30
"""Bound on an integer, so that no integer wraps; the entropy coder refuses integers of this size."""

_SEARCHED = 4096  # samples of a search without feedback; a path through fewer is worse, longer ones take memory
_BLOCK = 64  # columns whose feedback is summed column by column; whole earlier blocks go through one matrix product


@dataclass(frozen=True, eq=False)
class Codebook:
    """The values that weights [R, C] may take: integers times rows[r] * columns[c].

    Attributes:
        rows: [R], half a step with a trellis, a whole step without.
        columns: [C].
        states: states of the trellis; 0: round to nearest, without a trellis.
        on: rows and columns on the trellis path; None: all.
        limit: the largest integer without a trellis.
    """

    rows: Doubles
    columns: Doubles
    states: int = 0
    on: OnTrellis | None = None
    limit: int = LARGEST

    @property
    def before(self) -> NDArray[np.uint64]:
        """Return `codec.quantization.trellis.predecessors`, uint64 [2, states]."""
        return predecessors(self.states) if self.states else np.zeros((2, 0), np.uint64)


def damped(moment: NDArray[np.floating]) -> Doubles:
    """Add DAMPING of the mean diagonal to a second moment, [n, n] or its diagonal [n]; a zero moment becomes ones."""
    moment = np.asarray(moment, np.float64).copy()
    diagonal = moment if moment.ndim == 1 else np.einsum("ii->i", moment)
    mean = float(diagonal.mean()) if diagonal.size else 0.0
    if mean > 0:
        diagonal += DAMPING * mean
    else:
        diagonal[:] = 1.0
    return moment


def upper_factor(moment: Doubles) -> Doubles:
    """Return the upper triangular V with V V^T = moment [n, n]; the root [n] of a diagonal [n].

    Sums in float32 leave slightly negative eigenvalues: up to a tenth of the mean diagonal is added to make up for
    them.

    Raises:
        FormatError: the moment is not positive definite, nor nearly.
    """
    if moment.ndim == 1 and (moment > 0).all():
        return np.sqrt(moment)
    if moment.ndim == 2:
        mean = float(np.diagonal(moment).mean()) if moment.size else 0.0
        for more in (0.0, 0.03, 0.1):
            with suppress(np.linalg.LinAlgError):
                raised = moment + more * mean * np.eye(len(moment)) if more else moment
                return np.ascontiguousarray(np.linalg.cholesky(raised[::-1, ::-1])[::-1, ::-1])
    raise FormatError("calibration: a moment is not positive definite; calibrate again")


def pivots(factor: Doubles) -> Doubles:
    """Return the squared diagonal [n] of a factor of `upper_factor`."""
    return np.square(factor if factor.ndim == 1 else np.diagonal(factor))


def quantize_columns(weights: Doubles, factor: Doubles, codebook: Codebook) -> NDArray[np.int32]:
    """Return the integers of weights [R, C], each column with the feedback of the columns before.

    Args:
        weights: [R, C].
        factor: V [C, C] of `upper_factor`; a diagonal [C] means no feedback.
        codebook: the values allowed; a trellis path runs down one column after the other.
    """
    height, width = weights.shape
    symbols = np.zeros((height, width), np.int32)
    feedback = np.zeros((width, 0))
    if factor.ndim == 2:  # [j, i] = V_ij / V_jj
        feedback = np.divide(factor.T, np.diagonal(factor)[:, None], out=np.empty_like(factor))
    c, before, on = codebook, codebook.before, codebook.on or OnTrellis.everywhere(height, width)
    state = 0
    if not feedback.size:  # columns do not depend on each other: a path is searched through several short ones at once
        block = max(1, _SEARCHED // max(1, height))
        for begin in range(0, width, block):
            part = slice(begin, begin + block)
            samples = (weights[:, part] / (c.rows[:, None] * c.columns[part])).T.reshape(-1)
            visited = (on.rows & on.columns[part, None]).reshape(-1)
            found, state = _to_integers(samples, before, visited, c.limit, state)
            symbols[:, part] = found.reshape(-1, height).T
        return symbols
    errors = np.zeros((height, width))
    for begin in range(0, width, _BLOCK):
        end = min(begin + _BLOCK, width)
        target = weights[:, begin:end] - errors[:, :begin] @ feedback[begin:end, :begin].T
        state = _columns(
            weights, target, begin, feedback, c.rows, c.columns, before, *on, c.limit, state, errors, symbols
        )
    return symbols


@compiler(nogil=True, fastmath={"reassoc", "contract"})
def _columns(
    weights, target, begin, feedback, rows, columns, before, on_rows, on_columns, limit, state, errors, symbols
):
    """Quantize a block of columns whose targets already hold the feedback of earlier blocks."""
    height, width = target.shape
    for k in range(width):
        j = begin + k
        for r in range(height):
            carried = 0.0
            for i in range(begin, j):
                carried += errors[r, i] * feedback[j, i]
            target[r, k] -= carried
        samples = target[:, k] / (rows * columns[j])
        integers, state = _to_integers(samples, before, on_rows & on_columns[j], limit, state)
        for r in range(height):
            symbols[r, j] = integers[r]
            errors[r, j] = integers[r] * rows[r] * columns[j] - weights[r, j]
    return state


@making
def _to_integers(samples, before, on, limit, state):
    """Round samples [N], in units of their steps, to int32 [N]: along the trellis from `state`, or to the nearest.

    `on` [N] says which samples are on the trellis path. The others become the nearest even integers, which are whole
    steps.

    Returns:
        (integers, the trellis state at the end).
    """
    if not before.shape[1]:
        rounded = np.minimum(np.maximum(np.rint(samples), -limit), limit)
        return rounded.astype(np.int32), state
    samples = np.minimum(np.maximum(samples, -LARGEST), LARGEST)
    integers = (2 * np.rint(samples / 2)).astype(np.int32)
    integers[on], state = search(samples[on], before, state)
    return integers, state
