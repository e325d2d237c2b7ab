"""LQER: the error of a quantized matrix, corrected by a product of two thin matrices (Zhang et al. 2024).

The challenge's last codec keeps the left factor in 2 bits with one scale and the right factor in 4 bits with a scale
for every 64 entries. This is our implementation: the right factor is fitted to the left one as rounded, so it repairs
at least as much as the challenge's.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

RANK = 4
"""Columns of the left factor (#1855)."""

GROUP = 64
"""Entries of the right factor that share a scale (#1855)."""

_MARK = "//"  # between the name of a matrix and that of a part of its correction


def repairs(errors: Mapping[str, NDArray[np.float32]], count: int) -> dict[str, NDArray[Any]]:
    """Return the parts of the corrections of the `count` matrices of the largest squared errors.

    Args:
        errors: weights minus quantized weights [R, C], by name.
        count: of matrices.
    """
    worst = sorted(errors, key=lambda name: -float(np.square(errors[name], dtype=np.float64).sum()))[:count]
    return {f"{name}{_MARK}{part}": values for name in worst for part, values in _factors(errors[name]).items()}


def is_repair(name: str) -> bool:
    """Return whether `name` is that of a part of a correction."""
    return _MARK in name


def apply_repairs(name: str, weights: NDArray[np.float32], parts: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
    """Return the weights of a matrix with its correction, if `parts` has one."""
    if name + _MARK + "left" not in parts:
        return weights
    left, scale, right, scales = (parts[name + _MARK + part] for part in ("left", "scale", "right", "scales"))
    thin: NDArray[np.float32] = left.astype(np.float32) * scale.astype(np.float32)
    return weights + thin @ _scaled(right, scales, weights.shape[1])


def _factors(error: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
    u, s, _ = np.linalg.svd(error, full_matrices=False)
    ideal = u[:, :RANK] * np.sqrt(s[:RANK])
    scale = np.float16(max(float(ideal.std()), 2.0**-14))
    left = np.rint(ideal / np.float32(scale)).clip(-2, 1).astype(np.int8)
    fitted = np.linalg.lstsq(left * np.float32(scale), error, rcond=None)[0].astype(np.float32)
    rows, columns = fitted.shape
    grouped = np.pad(fitted, ((0, 0), (0, -columns % GROUP))).reshape(rows, -1, GROUP)
    scales = np.maximum(np.abs(grouped).max(2) / 7, 2.0**-24).astype(np.float16)
    right = np.rint(grouped / scales[..., None].astype(np.float32)).clip(-8, 7).astype(np.int8)
    return {"left": left, "scale": np.array([scale]), "right": right.reshape(rows, -1), "scales": scales}


def _scaled(right: NDArray[np.int8], scales: NDArray[np.float16], columns: int) -> NDArray[np.float32]:
    grouped = right.reshape(*scales.shape, GROUP).astype(np.float32) * scales[..., None].astype(np.float32)
    return grouped.reshape(len(right), -1)[:, :columns]
