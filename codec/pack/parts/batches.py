"""Read batches of small tensors: the tensors of one dtype lie together and are compressed together."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from codec.errors import FormatError
from codec.pack.parts.dtypes import FLOATS, check_bools, size_of, width_of
from codec.pack.parts.part import EXACT, decode_exact, read_part

BATCH = 1 << 20
"""Bytes of small tensors that make up a batch."""

MOST_BATCH = 1 << 26
"""The most bytes of a tensor that is a batch of its own: the memory that a hostile header can claim for a tensor."""


class Kept(NamedTuple):
    """A small tensor as a batch keeps it."""

    name: str
    data: NDArray[np.uint8]  # its elements, little-endian
    dtype: str
    shape: tuple[int, ...]

    def array(self) -> NDArray[Any]:
        """Return the tensor as a NumPy array; bfloat16 and narrower as float32.

        Raises:
            FormatError: a bool that is neither 0 nor 1.
        """
        check_bools(self.data, self.dtype)
        if self.dtype == "bfloat16":
            wide = self.data.view("<u2").astype(np.uint32) << 16
            return wide.view(np.float32).reshape(self.shape)
        if self.dtype in _NUMPY:
            return self.data.view(_NUMPY[self.dtype]).reshape(self.shape).copy()
        from codec.pack.parts.tensors import from_bytes  # torch knows the rare types, and takes seconds to import

        tensor = from_bytes(self.data, self.dtype, self.shape)
        return (tensor.float() if "float8" in self.dtype else tensor).numpy()


def read_batch(part: bytes, entries: Sequence[Mapping[str, Any]]) -> Iterator[Kept]:
    """Yield the tensors of a batch.

    Args:
        part: the bytes of the batch.
        entries: the header's entries of the batch's tensors.

    Raises:
        FormatError: the part is damaged.
    """
    dtype = entries[0].get("kept", entries[0]["dtype"])
    sizes = [size_of(dtype, entry["shape"]) for entry in entries]
    try:
        tag, content = read_part(part)
        if tag != EXACT:
            raise FormatError("they are quantized; the file was not written by underpar")
        data = decode_exact(content, sum(sizes), width_of(dtype), dtype in FLOATS)
        check_bools(data, dtype)
    except FormatError as error:
        raise FormatError(f"pack: vectors from {entries[0]['name']} on: {error}") from error
    at = 0
    for entry, size in zip(entries, sizes, strict=True):
        yield Kept(entry["name"], data[at : at + size], dtype, tuple(entry["shape"]))
        at += size


_NUMPY = {
    name: np.dtype(name).newbyteorder("<")
    for name in (
        *("float64", "float32", "float16", "bool", "complex128", "complex64"),
        *("int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8"),
    )
}
