"""Say what a tensor of a model is."""

from dataclasses import dataclass
from typing import Literal

Role = Literal["embedding", "matrix", "hash", "vector"]


@dataclass(frozen=True)
class Parameter:
    """`shape` is [outputs, inputs] for a matrix, [rows, width] for an embedding or hash table."""

    shape: tuple[int, ...]
    role: Role
