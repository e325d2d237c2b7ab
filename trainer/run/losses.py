"""The losses that a run minimises, compiled on a GPU."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trainer.distributed import World
from trainer.model.gpt import GPT, Teaching
from trainer.model.qat import quantized_loss, rounding_of
from trainer.optim.schedule import Phase, phases
from trainer.recipe import Recipe

Loss = Callable[[Tensor, Tensor], Tensor]
"""Mean nats of targets int64 [B, T] after tokens int64 [B, T]."""


COMPILING: dict[str, dict[str, str | int | bool | Callable[..., Any]]] = {
    "quick": {},
    "tuned": {"coordinate_descent_tuning": True},
    "searched": {"coordinate_descent_tuning": True, "max_autotune_gemm": True},
}
"""Options of the compiler by their names in recipes."""


@dataclass(frozen=True)
class Losses:
    """The loss before and after quantization-aware training begins; equal if the recipe has none."""

    plain: Loss
    quantized: Loss

    def of(self, model: GPT, phase: Phase) -> Loss:
        """Return the loss of a phase, after switching `model`'s loops on or off."""
        model.loop(phase.loops)
        return self.quantized if phase.quantizes else self.plain


def losses_of(model: GPT, recipe: Recipe, world: World, teacher: GPT | None = None) -> Losses:
    """Return the losses of a recipe, each compiled to one graph on a GPU.

    Args:
        model: of the run.
        recipe: the settings.
        world: the processes.
        teacher: a model whose probabilities are learned besides the text.

    Raises:
        CodecError: see `trainer.model.qat.rounding_of`.
    """
    if teacher is not None:
        model.teaching = Teaching(teacher, recipe.learning.teacher_share)
    quantized = quantized_loss(model, rounding_of(model, recipe.train)) if recipe.train.qat else model.loss
    if world.device.type != "cuda":
        return Losses(model.loss, quantized)
    torch.compiler.reset()  # graphs of earlier runs in this process count against the limit
    graphs = len(phases(recipe))
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, graphs)
    plain = compiled(model.loss, recipe)
    return Losses(plain, compiled(quantized, recipe) if recipe.train.qat else plain)


def compiled(loss: Callable[..., Tensor], recipe: Recipe) -> Loss:
    """Compile `loss` to one graph of kernels for each shape of its inputs."""
    return torch.compile(loss, fullgraph=True, dynamic=False, options=COMPILING[recipe.train.compiling])
