"""The subject of weight codecs: a model's weights, the role of each tensor, and the data known beside the weights."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from codec.errors import FormatError
from codec.model.byte_pairs import AnyTokenizer
from codec.model.checkpoint import load_checkpoint
from codec.model.config import AnyConfig
from codec.model.parameters import Role, parameters
from codec.pack.plan import QUANTIZED_FROM
from codec.quantization.calibration import FILE, Calibration, Moments, load_calibration, moments_of
from codec.quantization.quantizers import Matrix, root_mean_square
from codec.zstd import shrink
from eval.score.models import check_state


@dataclass(frozen=True)
class Subject:
    """Weights and their surroundings; config and tokenizer are None for weights of another project."""

    state: dict[str, torch.Tensor]
    config: AnyConfig | None
    tokenizer: AnyTokenizer | None
    calibration: Calibration | None

    @cached_property
    def roles(self) -> dict[str, Role]:
        """Return the role of every tensor.

        Without a config, a large matrix named like an embedding is the embedding.
        """
        if self.config:
            return {name: parameter.role for name, parameter in parameters(self.config).items()}
        roles: dict[str, Role] = {}
        for name, tensor in sorted(self.state.items()):
            matrix = tensor.is_floating_point() and tensor.ndim >= 2 and tensor.numel() >= QUANTIZED_FROM
            roles[name] = "vector" if not matrix else "embedding" if "embed" in name.lower() else "matrix"
        return roles

    @cached_property
    def matrices(self) -> dict[str, NDArray[np.float32]]:
        """Return every tensor that is no vector, as float32 [shape[0], the rest]."""
        return {
            name: self.state[name].detach().float().reshape(self.state[name].shape[0], -1).numpy()
            for name, role in self.roles.items()
            if role != "vector"
        }

    @cached_property
    def parameters(self) -> int:
        """Return the number of weights."""
        return sum(tensor.numel() for tensor in self.state.values())

    @cached_property
    def companions(self) -> int:
        """Return the bytes of config and tokenizer in a pack, which a peer's file would need, too."""
        if self.config is None or self.tokenizer is None:
            return 0
        return len(shrink(self.config.to_json().encode())) + len(shrink(self.tokenizer.model))

    def moments(self, name: str) -> Moments:
        """Return the calibration of a matrix; identities without a calibration."""
        rows, columns = self.matrices[name].shape
        return moments_of(self.calibration, name, (rows, columns))

    def matrix(self, name: str) -> Matrix:
        """Return the input of a quantizer for a matrix; without a calibration, errors count relative to its size."""
        weights, relative = self.matrices[name], self.calibration is None
        scale = root_mean_square(weights) if relative else 1.0
        return Matrix(name, self.roles[name], weights, self.moments(name), scale, relative)

    def relative_error(self, state: dict[str, torch.Tensor]) -> float:
        """Return the squared error of all matrices together over their squared norm."""
        error = norm = 0.0
        for name, weights in self.matrices.items():
            other = state[name].float().reshape(weights.shape).numpy()
            error += float(np.square(other.astype(np.float64) - weights).sum())
            norm += float(np.square(weights, dtype=np.float64).sum())
        return error / norm if norm else 0.0


def load_subject(path: Path) -> Subject:
    """Read a run folder, or a `.safetensors` file of any project.

    Raises:
        FormatError: unreadable, nothing to quantize, or a weight that is not finite.
        MismatchError: weights and config do not belong together.
    """
    checkpoint = load_checkpoint(path)
    beside = (path if path.is_dir() else path.parent) / FILE
    if checkpoint.config:
        check_state(checkpoint.state_dict, checkpoint.config, f"model {path}")
    else:
        for name, tensor in checkpoint.state_dict.items():
            if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                raise FormatError(f"model {path}: tensor {name} holds values that are not finite; repair the file")
    calibration = load_calibration(beside) if checkpoint.config and beside.is_file() else None
    subject = Subject(checkpoint.state_dict, checkpoint.config, checkpoint.tokenizer, calibration)
    if not subject.matrices:
        raise FormatError(f"model {path}: no matrix of {QUANTIZED_FROM} elements or more; there is nothing to quantize")
    return subject
