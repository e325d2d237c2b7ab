"""The parts that the float model's modules share: norms, rotations, matrices."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codec.model.config import ModelConfig
from codec.numerics.random_map import signs
from codec.numerics.tables import YARN_TURNS
from trainer.kernels.fusion import Fusion

EPS = 2.0**-23
"""Added to a mean square before its root; also the least squared length that XSA divides by: float32's epsilon."""


def rms_norm(x: Tensor) -> Tensor:
    """Return x / sqrt(mean(x^2) + EPS) over the last dimension, computed in float32, in the dtype of x."""
    return F.rms_norm(x.float(), (x.shape[-1],), eps=EPS).to(x.dtype)


def rope_tables(config: ModelConfig, length: int, begin: int = 0) -> tuple[Tensor, Tensor]:
    """Return cos and sin of the rotary angles, float32 [length, rotary_dims / 2], of positions from `begin` on.

    Frequency i is rope_base^(-2i / rotary_dims), slowed by `codec.numerics.tables.yarn_slowing` for YaRN.
    """
    half = torch.arange(0, config.rotary_dims, 2, dtype=torch.float64)
    frequencies = torch.tensor(config.rope_base, dtype=torch.float64) ** (-half / config.rotary_dims)
    few, many = YARN_TURNS
    kept = ((config.window / config.yarn * frequencies / (2 * math.pi) - few) / (many - few)).clamp(0, 1)
    frequencies = frequencies * (kept + (1 - kept) / config.yarn)
    angles = torch.arange(begin, begin + length, dtype=torch.float64)[:, None] * frequencies
    return angles.cos().float(), angles.sin().float()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the leading dimensions of x [..., T, head_dim] by RoPE in the half-split form; the others pass through."""
    half = cos.shape[-1]
    a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat((a * cos + b * sin, b * cos - a * sin, rest), dim=-1)


class Linear(nn.Linear):
    """A matrix without bias: a float32 parameter, used in the dtype of its input."""

    def __init__(self, inputs: int, outputs: int, zero: bool = False):
        super().__init__(inputs, outputs, bias=False)
        if zero:
            nn.init.zeros_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Return the product with x [..., inputs], in the dtype of x."""
        return F.linear(x, self.weight.to(x.dtype))

    def scaled(self, x: Tensor, scale: Tensor, fuse: Fusion) -> Tensor:
        """Return the product times scale [outputs]."""
        if fuse.joint:
            return fuse.product(x, scale[:, None] * self.weight)  # the matrix is smaller than the product
        return scale.to(x.dtype) * self(x)


class RandomMap(nn.Module):
    """A fixed random map `number` (`codec.numerics.random_map`) with learned row scales, plus a product of low rank."""

    def __init__(self, number: int, inputs: int, outputs: int, rank: int, zero: bool = False):
        super().__init__()
        self.inner, self.outer = Linear(inputs, rank), Linear(rank, outputs, zero=True)
        self.scale = nn.Parameter(torch.full((outputs,), 0.0 if zero else (3 * inputs) ** -0.5))
        self.register_buffer("signs", torch.from_numpy(signs(number, outputs, inputs)), persistent=False)

    @property
    def weight(self) -> Tensor:
        """Return the whole matrix, float32 [outputs, inputs]."""
        return self.scale[:, None] * self.get_buffer("signs") + self.outer.weight @ self.inner.weight

    def forward(self, x: Tensor) -> Tensor:
        """Return the product with x [..., inputs], in the dtype of x."""
        return self.scale.to(x.dtype) * F.linear(x, self.get_buffer("signs").to(x.dtype)) + self.outer(self.inner(x))

    def scaled(self, x: Tensor, scale: Tensor, fuse: Fusion) -> Tensor:
        """Return the product times scale [outputs]."""
        return fuse.product(x, scale[:, None] * self.weight) if fuse.joint else scale.to(x.dtype) * self(x)
