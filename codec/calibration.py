"""What a model's layers see: second moments that say which errors of a weight cost how much.

The Fisher information of a weight matrix is approximated by a Kronecker product (Martens and Grosse 2015): an error E
costs about tr(G E H E^T) / 2 nats, with H the second moment of the layer's inputs and G that of the loss's gradients at
its outputs, labels sampled from the model. Without calibration both are identities: plain squared error.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from codec.errors import FormatError, MismatchError
from codec.files import atomic_write, read_bytes

FILE = "calibration.safetensors"
"""Its name beside a checkpoint."""


@dataclass(frozen=True)
class Moments:
    """Of one matrix [R, C]."""

    inputs: NDArray[np.float32]  # H [C, C]
    outputs: NDArray[np.float32]  # the diagonal of G, [R]


Calibration = Mapping[str, Moments]
"""Moments by the name of the matrix."""


def save_calibration(path: str | Path, calibration: Calibration) -> None:
    """Write moments as safetensors: `NAME.inputs` and `NAME.outputs`."""
    tensors = {}
    for name, moments in calibration.items():
        tensors[name + ".inputs"] = np.ascontiguousarray(moments.inputs)
        tensors[name + ".outputs"] = np.ascontiguousarray(moments.outputs)
    with atomic_write(path) as file:
        file.write(save(tensors))


def load_calibration(path: str | Path) -> dict[str, Moments]:
    """Read what `save_calibration` wrote. Raises FormatError for another file."""
    try:
        tensors = load(read_bytes(path, "calibration"))
        names = [name.removesuffix(".inputs") for name in sorted(tensors) if name.endswith(".inputs")]
        if not names or len(tensors) != 2 * len(names):
            raise KeyError("tensors other than NAME.inputs and NAME.outputs, or none")
        return {name: Moments(tensors[name + ".inputs"], tensors[name + ".outputs"]) for name in names}
    except (SafetensorError, KeyError) as error:
        raise FormatError(f"calibration {path}: not what `underpar calibrate` writes ({error})") from error


def moments_of(calibration: Calibration | None, name: str, shape: tuple[int, int]) -> Moments:
    """The moments of a matrix [R, C]; identities where there is no calibration.

    Raises:
        MismatchError: moments of another shape, or none of this matrix.
        FormatError: moments that are not finite.
    """
    rows, columns = shape
    if calibration is None:
        return Moments(np.eye(columns, dtype=np.float32), np.ones(rows, np.float32))
    if name not in calibration:
        raise MismatchError(f"calibration: nothing of {name}; calibrate this checkpoint")
    found = calibration[name]
    if found.inputs.shape != (columns, columns) or found.outputs.shape != (rows,):
        raise MismatchError(
            f"calibration of {name}: moments {found.inputs.shape} and {found.outputs.shape}, expected "
            f"{(columns, columns)} and {(rows,)}; calibrate this checkpoint"
        )
    if not (np.isfinite(found.inputs).all() and np.isfinite(found.outputs).all()):
        raise FormatError(f"calibration of {name}: not all moments are finite; calibrate again")
    return found
