"""Distributions of the initial matrices, besides PyTorch's uniform; matrices that start at 0 stay at 0."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from codec.model.parameters import parameters
from trainer.model.gpt import GPT


def orthogonal(matrix: Tensor) -> None:
    """Draw a random matrix [R, C] all of whose singular values are 1 (Saxe et al. 2013)."""
    nn.init.orthogonal_(matrix)


def spectral(matrix: Tensor) -> None:
    """Draw a Gaussian matrix of spectral norm sqrt(R / C): vectors keep their RMS (Yang, Simon and Bernstein 2023)."""
    rows, columns = matrix.shape
    matrix.normal_()
    matrix.mul_((rows / columns) ** 0.5 / torch.linalg.matrix_norm(matrix, ord=2))


WAYS: dict[str, Callable[[Tensor], None]] = {"orthogonal": orthogonal, "spectral": spectral}
"""Functions by their names in recipes; "uniform" is the distribution of `GPT` itself."""


@torch.no_grad()
def initialise(model: GPT, way: str) -> None:
    """Draw the matrices of a new model anew, from torch's generator of the CPU; "uniform" leaves them as they are."""
    roles = parameters(model.config)
    for name, tensor in model.named_parameters():
        if way in WAYS and roles[name].role == "matrix" and tensor.any():
            WAYS[way](tensor)
