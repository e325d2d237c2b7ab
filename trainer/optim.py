"""Optimizers: Muon (Jordan et al. 2024) for the matrices, Adam for embeddings, hash tables and vectors."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codec.parameters import parameters
from trainer.distributed import World
from trainer.model import GPT
from trainer.recipe import OptimRecipe

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of x, x^3 and x^5: steep at 0, and values near 1 stay within about 0.3 of it (Jordan et al. 2024)."""


def orthogonalise(stack: Tensor, steps: int = 5) -> Tensor:
    """U V^T, roughly, for each matrix U S V^T of a stack [N, R, C]: Newton-Schulz drives the singular values near 1.

    Returns:
        [N, R, C] in bfloat16 on a GPU and float32 elsewhere. A matrix of zeros stays one.
    """
    a, b, c = NEWTON_SCHULZ
    x = stack.to(torch.bfloat16 if stack.is_cuda else torch.float32)
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    x = x / (torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = torch.bmm(x, x.mT)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class Muon:
    """Momentum whose update is orthogonalised; matrices of one shape are worked on as one stack.

    Under several processes each orthogonalises its share of every stack, and all gather the results.

    Args:
        matrices: the parameters, each [R, C].
        world: the processes that hold the same parameters and see the same gradients.
    """

    def __init__(self, matrices: list[nn.Parameter], world: World):
        self.world = world
        self.groups: dict[tuple[int, ...], list[Tensor]] = {}
        for matrix in matrices:
            self.groups.setdefault(tuple(matrix.shape), []).append(matrix)
        self.momenta = [torch.zeros(len(group), *shape, device=group[0].device) for shape, group in self.groups.items()]

    @torch.no_grad()
    def step(self, lr: float, momentum: float, weight_decay: float) -> None:
        """One update from the gradients; decay is decoupled, and tall matrices step sqrt(R / C) further."""
        for (rows, columns), (group, buffer) in zip(
            self.groups, zip(self.groups.values(), self.momenta, strict=True), strict=True
        ):
            gradients = torch.stack([matrix.grad for matrix in group if matrix.grad is not None])
            buffer.mul_(momentum).add_(gradients)
            updates = self.shared_out(gradients.add_(buffer, alpha=momentum))  # Nesterov
            reach = lr * max(1.0, rows / columns) ** 0.5
            torch._foreach_mul_(group, 1 - lr * weight_decay)
            torch._foreach_add_(group, updates.float().unbind(), alpha=-reach)

    def shared_out(self, stack: Tensor) -> Tensor:
        """`orthogonalise(stack)`, each process doing an equal share of the stack (padded with zeros)."""
        if self.world.size == 1:
            return orthogonalise(stack)
        share = -(-len(stack) // self.world.size)
        padded = F.pad(stack, (0, 0, 0, 0, 0, share * self.world.size - len(stack)))
        mine = orthogonalise(padded[self.world.rank * share : (self.world.rank + 1) * share])
        return self.world.gather(mine.contiguous())[: len(stack)]


class Optimizers:
    """Muon and Adam over all parameters of a model, driven by one learning-rate scale."""

    def __init__(self, model: GPT, recipe: OptimRecipe, world: World):
        by_role: dict[str, list[nn.Parameter]] = {"embedding": [], "hash": [], "vector": [], "matrix": []}
        tensors = dict(model.named_parameters())
        for name, parameter in parameters(model.config).items():
            by_role[parameter.role].append(tensors[name])
        self.recipe = recipe
        self.muon = Muon(by_role["matrix"], world)
        tables = by_role["embedding"] + by_role["hash"]
        self.adam = torch.optim.AdamW(
            [
                {"params": tables, "weight_decay": recipe.embed_weight_decay},
                {"params": by_role["vector"], "weight_decay": 0.0},
            ],
            betas=(recipe.beta1, recipe.beta2),
            eps=recipe.adam_eps,
            fused=world.device.type == "cuda",
        )

    def step(self, scale: float, momentum: float) -> None:
        """One update from the gradients, every learning rate times `scale`, Muon with `momentum`."""
        recipe = self.recipe
        for group, lr in zip(self.adam.param_groups, (recipe.embed_lr, recipe.vector_lr), strict=True):
            group["lr"] = lr * scale
        self.adam.step()
        self.muon.step(recipe.matrix_lr * scale, momentum, recipe.weight_decay)

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain Python values."""
        return {"adam": self.adam.state_dict(), "muon": self.muon.momenta}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what `state_dict` of an equal model and recipe gave."""
        self.adam.load_state_dict(state["adam"])
        for mine, saved in zip(self.muon.momenta, state["muon"], strict=True):
            mine.copy_(saved)
