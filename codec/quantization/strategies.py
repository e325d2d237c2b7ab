"""Quantization strategies by name, to compare and to ablate: fixed widths, the challenge's, this project's."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np

from codec.quantization.feedback import Codebook, damped, quantize_columns, upper_factor
from codec.quantization.quantized import Quantized
from codec.quantization.quantizers import (
    Binary,
    Matrix,
    Nearest,
    RowAbsmax,
    Strategy,
    Ternary,
    half_precision_steps,
    nearest,
)
from codec.quantization.sensitivity import SensitivityGrid


@dataclass(frozen=True)
class SDClip:
    """The challenge's recipe: a step for each row from its standard deviation, error feedback, clipping.

    Rows of matrices and hash tables have steps of `matrix_clip` deviations / 31 (int6), rows of the embedding of
    `embedding_clip` / 127 (int8), all times `unit`. The defaults are those of the challenge's record of 2026-04-05.
    """

    unit: float = 1.0
    matrix_clip: float = 12.85
    embedding_clip: float = 20.0
    feedback: bool = True

    def __call__(self, matrix: Matrix) -> Quantized:
        """Quantize a matrix.

        Raises:
            FormatError: the inputs' moment is not positive semidefinite.
        """
        weights = matrix.weights
        clip, limit = (self.embedding_clip, 127) if matrix.role == "embedding" else (self.matrix_clip, 31)
        deviations = weights.std(1, dtype=np.float64) if weights.size else np.zeros(len(weights))
        rows = half_precision_steps((self.unit * clip / limit * deviations).astype(np.float32))
        if not self.feedback:
            return nearest(weights, rows, limit)
        factor = upper_factor(damped(matrix.moments.inputs))
        safe = np.where(rows > 0, rows, np.float32(1)).astype(np.float64)
        codebook = Codebook(safe, np.ones(weights.shape[1]), limit=limit)
        symbols = quantize_columns(weights.astype(np.float64), factor, codebook)
        return Quantized(symbols * (rows > 0)[:, None].astype(np.int32), rows)


def fixed(quantizer: RowAbsmax | Ternary | Binary) -> Strategy:
    """Return a strategy of one quantizer for every unit."""
    return lambda unit: quantizer


STRATEGIES: Mapping[str, Strategy] = {
    "int8": fixed(RowAbsmax(8)),
    "int6": fixed(RowAbsmax(6)),
    "int5": fixed(RowAbsmax(5)),
    "int4": fixed(RowAbsmax(4)),
    "ternary": fixed(Ternary()),
    "binary": fixed(Binary()),
    "nearest": Nearest,
    "sdclip-nearest": partial(SDClip, feedback=False),
    "sdclip": SDClip,
    "uniform": partial(SensitivityGrid, states=0, by_row=False, by_column=False),
    "columns": partial(SensitivityGrid, states=0, by_row=False),
    "rows": partial(SensitivityGrid, states=0, by_column=False),
    "steps": partial(SensitivityGrid, states=0),
    "steps-open": partial(SensitivityGrid, states=0, feedback=False),
    "trellis4": partial(SensitivityGrid, states=4),
    "trellis8": partial(SensitivityGrid, states=8),
    "trellis16": partial(SensitivityGrid, states=16),
    "trellis64": partial(SensitivityGrid, states=64),
    "trellis256": SensitivityGrid,
}
"""Strategies by name. "open": no error feedback; a number: trellis states."""
