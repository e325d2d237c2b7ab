"""Define the dtypes that a pack keeps, by name, and the slabs that large tensors are cut into."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from codec.errors import FormatError

BYTES = {
    **{"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2},
    **{"float8_e4m3fn": 1, "float8_e5m2": 1, "float8_e4m3fnuz": 1, "float8_e5m2fnuz": 1, "float8_e8m0fnu": 1},
    **{"int64": 8, "int32": 4, "int16": 2, "int8": 1, "uint64": 8, "uint32": 4, "uint16": 2, "uint8": 1},
    **{"bool": 1, "complex128": 16, "complex64": 8, "complex32": 4},
}
"""Bytes of an element, by the name that headers and torch have for its dtype."""

FLOATS = frozenset(name for name in BYTES if "float" in name)

SLAB = 1 << 22
"""Elements of the pieces that tensors are coded in: memory for a piece is about 50 bytes an element, and pieces are
coded side by side. A slab of 4 million weights pays 0.02 % for learning its own statistics."""


def width_of(dtype: str) -> int:
    """Return the bytes of each number of an element; the two halves of a complex element are numbers of their own."""
    return BYTES[dtype] // 2 if dtype.startswith("complex") else BYTES[dtype]


def size_of(dtype: str, shape: Sequence[int]) -> int:
    """Return the bytes of a tensor's elements."""
    return math.prod(shape) * BYTES[dtype]


def check_bools(data: NDArray[np.uint8], dtype: str) -> None:
    """Raise FormatError for a bool that is neither 0 nor 1."""
    if dtype == "bool" and (data > 1).any():
        raise FormatError("bools other than 0 and 1; the file was not written by underpar")


def slabs(shape: Sequence[int], most: int = SLAB) -> list[tuple[int, int, int]]:
    """Return the slabs of a tensor: (first element, rows, columns) of each, in the order of elements.

    A tensor is a matrix of shape[0] rows. A slab is as many whole rows as have at most `most` elements. A longer row is
    cut into several slabs.

    >>> slabs((5, 3), 6)
    [(0, 2, 3), (6, 2, 3), (12, 1, 3)]
    >>> slabs((2, 5), 4)
    [(0, 1, 4), (4, 1, 1), (5, 1, 4), (9, 1, 1)]
    """
    rows, columns = matrix_shape(shape)
    if columns > most:
        pieces = [(at, 1, min(most, columns - at)) for at in range(0, columns, most)]
        return [(row * columns + at, 1, size) for row in range(rows) for at, _, size in pieces]
    height = max(1, most // max(1, columns))
    found = [(row * columns, min(height, rows - row), columns) for row in range(0, rows, height)]
    return found or [(0, 0, columns)]


def slab_count(shape: Sequence[int], most: int = SLAB) -> int:
    """Return how many slabs a tensor has, without making a list of them.

    >>> slab_count((5, 3), 6), slab_count((2, 5), 4), slab_count((0, 3), 4)
    (3, 4, 1)
    """
    rows, columns = matrix_shape(shape)
    if columns > most:
        return rows * -(-columns // most)
    return max(1, -(-rows // max(1, most // max(1, columns))))


def matrix_shape(shape: Sequence[int]) -> tuple[int, int]:
    """Return the rows and columns of a tensor as a matrix: shape[0], and everything else; a vector is one row."""
    return (shape[0], math.prod(shape[1:])) if len(shape) > 1 else (1, math.prod(shape))
