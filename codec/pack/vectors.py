"""Write batches of small tensors: the tensors of one dtype lie together and are compressed together."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from codec.errors import FormatError
from codec.pack.parts.batches import BATCH
from codec.pack.parts.dtypes import FLOATS, width_of
from codec.pack.parts.part import exact_part
from codec.pack.parts.tensors import name_of, plain, to_bytes
from codec.pack.plan import Item

HALF_LIMIT = 65_504
"""Float16's largest number: a vector with an entry of this size or more is kept as float32."""


@dataclass(frozen=True)
class Batch:
    """A part, with the entries that the header's list of vectors has for it."""

    entries: list[dict[str, Any]]
    part: bytes


def batches(items: Sequence[Item], state: Mapping[str, torch.Tensor], any_value: bool) -> list[Batch]:
    """Return the batches of small tensors.

    Args:
        items: the tensors to keep.
        state: their values by name.
        any_value: whether to keep infinities, and NaN where the caller asked for an exact tensor.

    Raises:
        FormatError: a value that may not be kept.
    """
    kept = [(item, _kept(item, plain(item.name, state[item.name]), any_value)) for item in items]
    kept.sort(key=lambda found: name_of(found[1].dtype))
    return [_batch(group) for group in _groups(kept)]


def _groups(kept: Sequence[tuple[Item, torch.Tensor]]) -> Iterator[list[tuple[Item, torch.Tensor]]]:
    """Yield runs of tensors of one dtype, of about BATCH bytes at most."""
    group: list[tuple[Item, torch.Tensor]] = []
    size = 0
    for item, tensor in kept:
        if group and (group[0][1].dtype != tensor.dtype or size + tensor.nbytes > BATCH):
            yield group
            group, size = [], 0
        group.append((item, tensor))
        size += tensor.nbytes
    if group:
        yield group


def _batch(group: Sequence[tuple[Item, torch.Tensor]]) -> Batch:
    dtype = name_of(group[0][1].dtype)
    entries = []
    for item, _ in group:
        entry = {"name": item.name, "shape": list(item.shape), "dtype": item.dtype}
        entries.append(entry if item.dtype == dtype else {**entry, "kept": dtype})
    data = np.concatenate([to_bytes(tensor) for _, tensor in group])
    return Batch(entries, exact_part(data, width_of(dtype), dtype in FLOATS))


def half(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """Return a vector in half precision, or in float32 where float16 would overflow.

    Raises:
        FormatError: a value is not finite, or too large for float32.
    """
    if not bool(torch.isfinite(tensor.double()).all()):
        raise FormatError(f"tensor {name}: not all values are finite; repair the checkpoint")
    largest = float(tensor.double().abs().max()) if tensor.numel() else 0.0
    if largest > float(np.finfo(np.float32).max):
        raise FormatError(f"tensor {name}: {largest:.3g} is too large for float32")
    return tensor.half() if largest < HALF_LIMIT else tensor.float()


def _kept(item: Item, tensor: torch.Tensor, any_value: bool) -> torch.Tensor:
    if item.how == "half":
        return half(item.name, tensor)
    if tensor.is_floating_point() and not item.listed:
        values = tensor.double()
        if bool(torch.isnan(values).any()) or not (any_value or bool(torch.isfinite(values).all())):
            raise FormatError(
                f"tensor {item.name}: not all values are finite; repair the checkpoint or list the tensor as lossless"
            )
    return tensor
