"""Turn the gradients of each process into new weights: Muon for the matrices, AdamW for all other parameters."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from codec.model.parameters import parameters
from trainer.distributed import World
from trainer.model.gpt import GPT
from trainer.optim.muon import Muon
from trainer.recipe import OptimRecipe


class Optimizers:
    """Muon and Adam over all parameters of a model, driven by one learning-rate scale."""

    def __init__(self, model: GPT, recipe: OptimRecipe, world: World):
        by_role: dict[str, list[nn.Parameter]] = {"embedding": [], "hash": [], "vector": [], "matrix": []}
        tensors = dict(model.named_parameters())
        for name, parameter in parameters(model.config).items():
            by_role[parameter.role].append(tensors[name])
        self.recipe, self.world = recipe, world
        self.muon = Muon(by_role["matrix"], world, recipe.orthogonal, recipe.level_rows)
        tables = by_role["embedding"] + by_role["hash"]
        self.others = tables + by_role["vector"]
        self.adam = torch.optim.AdamW(
            [
                {"params": tables, "weight_decay": recipe.embed_weight_decay},
                {"params": by_role["vector"], "weight_decay": 0.0},
            ],
            betas=(recipe.beta1, recipe.beta2),
            eps=recipe.adam_eps,
            fused=world.device.type == "cuda",
        )

    @torch.no_grad()
    def step(self, scale: float, momentum: float) -> None:
        """Make one update from the mean of the processes' gradients, without waiting for a GPU.

        Every learning rate is multiplied by `scale`; `momentum` is Muon's.
        """
        recipe, world = self.recipe, self.world
        arriving = self.muon.reduce()
        rest = self.mean_of_rest()
        shares = [share.wait() for share in arriving]
        if world.size > 1:
            torch._foreach_div_(shares, world.size)
        if recipe.grad_clip:
            energy = world.total(torch.stack(torch._foreach_norm(shares)).square().sum())
            energy = energy + torch.stack(torch._foreach_norm(rest)).square().sum()
            factor = (recipe.grad_clip / (energy.sqrt() + 1e-6)).clamp(max=1.0)
            torch._foreach_mul_(shares + rest, factor)
        for group, lr in zip(self.adam.param_groups, (recipe.embed_lr, recipe.vector_lr), strict=True):
            group["lr"] = lr * scale
        self.adam.step()
        self.muon.step(shares, recipe.matrix_lr * scale, momentum, recipe.weight_decay)

    def mean_of_rest(self) -> list[Tensor]:
        """Return the gradients of all parameters that Muon does not train, averaged over all processes in place."""
        holders = [tensor for tensor in self.others if tensor.grad is not None]
        gradients = [tensor.grad for tensor in holders if tensor.grad is not None]
        if self.world.size == 1:
            return gradients
        flat = self.world.summed(torch.cat([gradient.flatten() for gradient in gradients])).wait() / self.world.size
        parts = [
            part.view_as(tensor)
            for part, tensor in zip(flat.split([g.numel() for g in gradients]), holders, strict=True)
        ]
        for tensor, part in zip(holders, parts, strict=True):
            tensor.grad = part
        return parts

    def state_dict(self) -> dict[str, Any]:
        """Return tensors and plain values, the same for any number of processes; every process must call this."""
        return {"adam": self.adam.state_dict(), "muon": self.muon.state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the `state_dict` of an equal model and recipe."""
        self.adam.load_state_dict(state["adam"])
        self.muon.load_state(state["muon"])
