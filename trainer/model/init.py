"""What matrices start from, besides PyTorch's uniform distribution; those that start at 0 stay there."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from codec.model.parameters import parameters
from trainer.model.gpt import GPT


def orthogonal(matrix: Tensor) -> None:
    """A random matrix [R, C] all of whose singular values are 1 (Saxe et al. 2013)."""
    nn.init.orthogonal_(matrix)


def spectral(matrix: Tensor) -> None:
    """Gaussian, of spectral norm sqrt(R / C): vectors keep their root mean square (Yang, Simon and Bernstein 2023)."""
    rows, columns = matrix.shape
    matrix.normal_()
    matrix.mul_((rows / columns) ** 0.5 / torch.linalg.matrix_norm(matrix, ord=2))


WAYS: dict[str, Callable[[Tensor], None]] = {"orthogonal": orthogonal, "spectral": spectral}
"""By the name that a recipe gives them; "uniform" is what `GPT` does."""


@torch.no_grad()
def initialise(model: GPT, way: str) -> None:
    """Draw the matrices of a new model anew, from torch's generator of the CPU; "uniform" leaves them as they are."""
    roles = parameters(model.config)
    for name, tensor in model.named_parameters():
        if way in WAYS and roles[name].role == "matrix" and tensor.any():
            WAYS[way](tensor)
