"""Keep decoded integers of packs in the cache: plain arrays are read faster than a pack is decoded."""

from collections.abc import Callable, Mapping
from io import BytesIO

import numpy as np

from codec.cache import kept
from codec.quantization.quantized import Quantized

WORTH = range(1 << 19, 1 << 22)
"""Weights of the models whose integers are worth the cache: fewer are soon decoded, more are not worth the disk."""

_MODELS = 16


def cached(pack: str, make: Callable[[], Mapping[str, Quantized]]) -> dict[str, Quantized]:
    """Return integers and steps of matrices by name from the cache, or make and cache them.

    Args:
        pack: SHA-256 of the pack, the name in the cache.
        make: decodes the matrices.
    """
    return read_integers(kept(f"weights/{pack}", lambda: write_integers(make()), _MODELS))


def write_integers(matrices: Mapping[str, Quantized]) -> bytes:
    """Return names, integers and steps as plain arrays.

    >>> one = Quantized(np.array([[3, -40]], np.int32), np.ones(1, np.float32))
    >>> read_integers(write_integers({"w": one}))["w"].dequantize()
    array([[  3., -40.]], dtype=float32)
    """
    file = BytesIO()
    np.save(file, np.array(list(matrices), np.str_), allow_pickle=False)
    for matrix in matrices.values():
        small = matrix.largest < 1 << 15
        columns = np.zeros(0, np.float32) if matrix.columns is None else matrix.columns
        for part in (matrix.symbols.astype(np.int16) if small else matrix.symbols, matrix.rows, columns):
            np.save(file, part, allow_pickle=False)
    return file.getvalue()


def read_integers(data: bytes) -> dict[str, Quantized]:
    """Return the matrices of `write_integers`, without the trellises and grids that they came from."""
    file, found = BytesIO(data), {}
    for name in np.load(file, allow_pickle=False).tolist():
        symbols, rows, columns = (np.load(file, allow_pickle=False) for _ in range(3))
        found[name] = Quantized(symbols.astype(np.int32), rows, columns if len(columns) else None)
    return found
