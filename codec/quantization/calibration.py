"""Second moments of a model's layers: the cost in nats of an error in each weight.

The Fisher information of a weight matrix is approximated by a Kronecker product (Martens and Grosse 2015): an error E
costs about tr(G E H E^T) / 2 nats. H is the second moment of the layer's inputs; G is the second moment of the loss's
gradients at the layer's outputs, with labels sampled from the model. Without calibration both are identities: plain
squared error. A diagonal stands for a diagonal matrix.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from codec.errors import FormatError, MismatchError
from codec.files import atomic_write

FILE = "calibration.safetensors"
"""Name of the calibration file beside a checkpoint."""


@dataclass(frozen=True)
class Moments:
    """The second moments of one matrix [R, C]."""

    inputs: NDArray[np.float32]  # H [C, C], or its diagonal [C]
    outputs: NDArray[np.float32]  # G [R, R], or its diagonal [R]

    @property
    def row_weights(self) -> NDArray[np.float32]:
        """Return the diagonal of G [R]."""
        return self.outputs if self.outputs.ndim == 1 else np.diagonal(self.outputs)


Calibration = Mapping[str, Moments]
"""Moments by matrix name."""


def save_calibration(path: str | Path, calibration: Calibration) -> None:
    """Write moments as safetensors: `NAME.inputs` and `NAME.outputs`."""
    tensors = {}
    for name, moments in calibration.items():
        tensors[name + ".inputs"] = np.ascontiguousarray(moments.inputs)
        tensors[name + ".outputs"] = np.ascontiguousarray(moments.outputs)
    with atomic_write(path) as file:
        file.write(save(tensors))


class _CalibrationFile(Mapping[str, Moments]):
    """A mapping that reads each entry from its file on every access."""

    def __init__(self, path: str | Path):
        self._path = str(path)
        if not Path(path).is_file():
            raise FormatError(f"calibration {path}: No such file; make one with: underpar calibrate")
        try:
            with safe_open(self._path, "np") as file:
                keys = set(file.keys())
                types = {file.get_slice(key).get_dtype() for key in keys}
        except SafetensorError as error:
            raise FormatError(f"calibration {path}: not what `underpar calibrate` writes ({error})") from error
        self._names = sorted(key.removesuffix(".inputs") for key in keys if key.endswith(".inputs"))
        expected = {f"{name}.{side}" for name in self._names for side in ("inputs", "outputs")}
        if not keys or keys != expected or types != {"F32"}:
            raise FormatError(
                f"calibration {path}: not what `underpar calibrate` writes (tensors other than NAME.inputs and "
                "NAME.outputs in float32, or none)"
            )

    def __getitem__(self, name: str) -> Moments:
        if name not in self._names:
            raise KeyError(name)
        with safe_open(self._path, "np") as file:  # closed at once: pages that were read count as memory until then
            return Moments(file.get_tensor(name + ".inputs"), file.get_tensor(name + ".outputs"))

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def load_calibration(path: str | Path) -> Calibration:
    """Open a file of `save_calibration`; the moments of a matrix are read on access.

    The moments of 36 million weights are larger than the weights, so they never lie in memory together.

    Raises:
        FormatError: no such file, or tensors other than NAME.inputs and NAME.outputs in float32.
    """
    return _CalibrationFile(path)


def moments_of(calibration: Calibration | None, name: str, shape: tuple[int, int]) -> Moments:
    """Return the moments of a matrix [R, C]; identities without a calibration.

    Args:
        calibration: moments by matrix name, or None.
        name: of the matrix.
        shape: (R, C).

    Raises:
        MismatchError: the calibration lacks the matrix, or its moments have another shape.
        FormatError: a moment is not finite.
    """
    rows, columns = shape
    if calibration is None:
        return Moments(np.ones(columns, np.float32), np.ones(rows, np.float32))
    if name not in calibration:
        raise MismatchError(f"calibration: no moments of {name}; calibrate this checkpoint")
    found = calibration[name]
    for moment, size in ((found.inputs, columns), (found.outputs, rows)):
        if moment.shape not in ((size,), (size, size)):
            raise MismatchError(
                f"calibration of {name}: moments {found.inputs.shape} and {found.outputs.shape}, expected "
                f"{columns} inputs and {rows} outputs; calibrate this checkpoint"
            )
        if not np.isfinite(moment).all():
            raise FormatError(f"calibration of {name}: not all moments are finite; calibrate again")
    return found
