"""Ways to compute the float model in training: the same function of the same weights, with fewer or cheaper kernels."""

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.kernels.fp8 import fp8_linear
from trainer.recipe import Recipe

MLP_UNIT = 64
"""Divisor of all widths for `trainer.kernels.mlp`."""

HOPPER = (9, 0)
"""Compute capability of the first GPUs with the tensor memory accelerator, which `trainer.kernels.mlp` uses."""


@dataclass(frozen=True)
class Fusion:
    """The optimizations of a training step over the plain model; hooks on matrices are not called.

    Attributes:
        joint: one product for queries, keys and values; factors of channels go into matrices and each other.
        fp8: the products of blocks in 8 bits (`trainer.kernels.fp8`).
        heads: `split_heads` and its gradient by Triton kernels, with `joint` on a GPU.
        loss: the loss and its slopes, from the logits, by a Triton kernel (`trainer.kernels.loss`), on a GPU.
        mlp: the MLP's products with the activation between them by Triton kernels, with `joint` on a GPU.
        xsa: `without_own_value` and the gates of its result by Triton kernels, on a GPU.
    """

    joint: bool = False
    fp8: bool = False
    heads: bool = False
    loss: bool = False
    mlp: bool = False
    xsa: bool = False

    def product(self, x: Tensor, matrix: Tensor) -> Tensor:
        """Return x [..., K] times the transpose of a matrix [M, K], in the dtype of x."""
        return (fp8_linear if self.fp8 else F.linear)(x, matrix.to(x.dtype))

    def split_heads(self, *arguments: Any) -> tuple[Tensor, ...]:
        """Call `trainer.kernels.heads.fused_heads`; imported here, since Triton is missing without a GPU."""
        from trainer.kernels.heads import fused_heads

        return fused_heads(*arguments)

    def without_own_value(self, y: Tensor, v: Tensor, gates: Tensor | None) -> Tensor:
        """Call `trainer.kernels.xsa.fused_without_own_value`, imported here for the same reason."""
        from trainer.kernels.xsa import fused_without_own_value

        return fused_without_own_value(y, v, gates)

    def mlp_of(self, x: Tensor, up: Tensor, down: Tensor, slope: float) -> Tensor:
        """Call `trainer.kernels.mlp.fused_mlp`, imported here for the same reason."""
        from trainer.kernels.mlp import fused_mlp

        return fused_mlp(x, up.to(x.dtype), down.to(x.dtype), slope)


PLAIN = Fusion()
"""No fusion."""


def fusion_of(recipe: Recipe, device: torch.device) -> Fusion:
    """Return the optimizations of a recipe on a device, with Triton kernels where device and shape allow them."""
    plan, model = recipe.train, recipe.model
    wanted: list[str] = []
    if device.type == "cuda" and find_spec("triton") is not None:
        wanted = plan.kernels.split()
    mlp = "mlp" in wanted and not plan.fp8 and model.activation != "swiglu" and model.model_dim % MLP_UNIT == 0
    if mlp:
        mlp = torch.cuda.get_device_capability(device) >= HOPPER
    heads, loss, xsa = (name in wanted for name in ("heads", "loss", "xsa"))
    return Fusion(joint=True, fp8=plan.fp8, heads=heads, loss=loss, mlp=mlp, xsa=xsa)
