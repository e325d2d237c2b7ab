"""Turn torch tensors into bytes and back."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from codec.errors import FormatError
from codec.pack.parts.dtypes import BYTES, check_bools

TYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in BYTES}
"""Torch's dtypes by the names that headers have."""


def name_of(dtype: torch.dtype) -> str:
    """Return the name of a dtype in headers, such as `bfloat16`."""
    return str(dtype).removeprefix("torch.")


def plain(name: str, tensor: object) -> torch.Tensor:
    """Return a tensor as packs keep it: detached, dense, on the CPU; lazy conjugates and negatives are resolved.

    Raises:
        FormatError: not a tensor, a tensor without values, or a layout or dtype that packs do not keep.
    """
    if isinstance(tensor, np.ndarray):
        raise FormatError(f"tensor {name!r}: a NumPy array, expected a torch.Tensor; pass torch.from_numpy(...)")
    if not isinstance(tensor, torch.Tensor):
        raise FormatError(f"entry {name!r}: a {type(tensor).__name__}, expected a torch.Tensor; leave the entry out")
    if tensor.is_meta:
        raise FormatError(f"tensor {name!r}: on the meta device, which has no values; load the checkpoint first")
    if tensor.layout != torch.strided or tensor.is_nested:
        raise FormatError(f"tensor {name!r}: layout {tensor.layout}, expected a dense tensor; pass tensor.to_dense()")
    if name_of(tensor.dtype) not in TYPES:
        raise FormatError(f"tensor {name!r}: dtype {tensor.dtype}, expected one of {', '.join(TYPES)}")
    return tensor.detach().cpu().resolve_conj().resolve_neg()


def to_bytes(tensor: torch.Tensor) -> NDArray[np.uint8]:
    """Return a tensor's elements, row by row and little-endian, as uint8 [bytes]; without a copy where possible."""
    flat = tensor.contiguous().reshape(-1)
    if flat.is_complex():
        flat = torch.view_as_real(flat).reshape(-1)
    return flat.view(torch.uint8).numpy() if flat.numel() else np.zeros(0, np.uint8)


def from_bytes(data: NDArray[np.uint8], dtype: str, shape: Sequence[int]) -> torch.Tensor:
    """Return the tensor of which `to_bytes` gave `data`; the tensor has memory of its own.

    Raises:
        FormatError: a bool that is neither 0 nor 1.
    """
    check_bools(data, dtype)
    kind = TYPES[dtype]
    if not data.size:
        return torch.zeros(*shape, dtype=kind) if shape else torch.zeros((), dtype=kind)
    return torch.from_numpy(data.copy()).view(kind).reshape(tuple(shape))


def cast_weights(weights: torch.Tensor, dtype: str) -> torch.Tensor:
    """Return weights in another dtype; a number beyond the dtype's range becomes the largest in the range."""
    kind = TYPES[dtype]
    if kind in (torch.float32, torch.float64):
        return weights.to(kind)
    if kind == torch.float8_e8m0fnu:  # powers of two: no zero and no sign
        return weights.clamp(math.ldexp(1.0, -127), math.ldexp(1.0, 127)).to(kind)
    largest = torch.finfo(kind).max
    return weights.clamp(-largest, largest).to(kind)
