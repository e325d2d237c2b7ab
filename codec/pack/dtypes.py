"""Tensors as bytes and back: the dtypes that a pack keeps, and the slabs that large tensors are cut into."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from codec.errors import FormatError

DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
        *(torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz, torch.float8_e8m0fnu),
        *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint64, torch.uint32, torch.uint16, torch.uint8),
        *(torch.bool, torch.complex128, torch.complex64, torch.complex32),
    )
}
"""Dtypes by the names that headers have."""

FLOATS = frozenset(name for name, dtype in DTYPES.items() if dtype.is_floating_point)

SLAB = 1 << 22
"""Elements of the pieces that tensors are coded in: memory for a piece is about 50 bytes an element, and pieces are
coded side by side. A slab of 4 million weights pays 0.02 % for learning its own statistics."""


def name_of(dtype: torch.dtype) -> str:
    """Return the name of a dtype in headers, such as `bfloat16`."""
    return str(dtype).removeprefix("torch.")


def width_of(dtype: str) -> int:
    """Return the bytes of the numbers that an element consists of: the halves of a complex number count apart."""
    kind = DTYPES[dtype]
    return kind.itemsize // 2 if kind.is_complex else kind.itemsize


def size_of(dtype: str, shape: Sequence[int]) -> int:
    """Return the bytes of a tensor."""
    return math.prod(shape) * DTYPES[dtype].itemsize


def plain(name: str, tensor: object) -> torch.Tensor:
    """Return a detached, dense tensor on the CPU in a dtype that packs keep; lazy conjugates and negatives resolved.

    Raises:
        FormatError: no tensor, one without values, or one of a layout or dtype that packs do not keep.
    """
    if isinstance(tensor, np.ndarray):
        raise FormatError(f"tensor {name!r}: a NumPy array, expected a torch.Tensor; pass torch.from_numpy(...)")
    if not isinstance(tensor, torch.Tensor):
        raise FormatError(f"entry {name!r}: a {type(tensor).__name__}, expected a torch.Tensor; leave the entry out")
    if tensor.is_meta:
        raise FormatError(f"tensor {name!r}: on the meta device, which has no values; load the checkpoint first")
    if tensor.layout != torch.strided or tensor.is_nested:
        raise FormatError(f"tensor {name!r}: layout {tensor.layout}, expected a dense tensor; pass tensor.to_dense()")
    if name_of(tensor.dtype) not in DTYPES:
        raise FormatError(f"tensor {name!r}: dtype {tensor.dtype}, expected one of {', '.join(DTYPES)}")
    return tensor.detach().cpu().resolve_conj().resolve_neg()


def to_bytes(tensor: torch.Tensor) -> NDArray[np.uint8]:
    """Return a tensor's elements, row by row and little-endian, as uint8 [bytes]; without a copy where possible."""
    flat = tensor.contiguous().reshape(-1)
    if flat.is_complex():
        flat = torch.view_as_real(flat).reshape(-1)
    return flat.view(torch.uint8).numpy() if flat.numel() else np.zeros(0, np.uint8)


def from_bytes(data: NDArray[np.uint8], dtype: str, shape: Sequence[int]) -> torch.Tensor:
    """Return the counterpart of `to_bytes`, a tensor of its own memory.

    Raises:
        FormatError: a bool that is neither 0 nor 1.
    """
    kind = DTYPES[dtype]
    if kind == torch.bool and (data > 1).any():
        raise FormatError("bools other than 0 and 1; the file was not written by underpar")
    if not data.size:
        return torch.zeros(*shape, dtype=kind) if shape else torch.zeros((), dtype=kind)
    return torch.from_numpy(data.copy()).view(kind).reshape(tuple(shape))


def slabs(shape: Sequence[int], most: int = SLAB) -> list[tuple[int, int, int]]:
    """Return the slabs of a tensor: (first element, rows, columns) of each, in the order of its elements.

    A tensor is a matrix of shape[0] rows. A slab is as many whole rows as have at most `most` elements; a longer row is
    cut itself.

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


def matrix_shape(shape: Sequence[int]) -> tuple[int, int]:
    """Return the rows and columns of a tensor as a matrix: shape[0], and everything else; a vector is one row."""
    return (shape[0], math.prod(shape[1:])) if len(shape) > 1 else (1, math.prod(shape))
