"""One optimizer step, and the steps before the clock starts."""

import torch
from torch import Tensor

from trainer.distributed import World
from trainer.loader import Loader
from trainer.losses import Loss, Losses
from trainer.optim import Optimizers
from trainer.recipe import Recipe
from trainer.resume import State, copy_of
from trainer.schedule import muon_momentum, phases


def descend(state: State, loss: Loss, loader: Loader, n: int, recipe: Recipe, world: World, scale: float) -> Tensor:
    """One optimizer step on batch `n`, learning rates times `scale`.

    Returns:
        the mean loss in nats of this process's share of the batch: a scalar on the device, not waited for.
    """
    inputs, targets = loader.batch(n)
    parts = micro_batches(recipe, world)
    total = torch.zeros((), device=world.device)
    for part_inputs, part_targets in zip(inputs.chunk(parts), targets.chunk(parts), strict=True):
        part = loss(part_inputs, part_targets) / parts
        part.backward()
        total += part.detach()
    state.optimizers.step(scale, muon_momentum(recipe.optim, n))
    state.model.zero_grad(set_to_none=True)
    return total


def prime(state: State, losses: Losses, loader: Loader, recipe: Recipe, world: World) -> None:
    """Steps that compile and warm every kernel, and whose effect on the state is undone."""
    weights = copy_of(state.model.state_dict())
    for phase in phases(recipe.train):
        loss = losses.of(state.model, phase)
        for n in range(recipe.train.prime_steps):
            descend(state, loss, loader, n, recipe, world, 1.0)
    state.model.load_state_dict(weights)
    state.optimizers = Optimizers(state.model, recipe.optim, world)
    torch.cuda.synchronize(world.device)


def micro_batches(recipe: Recipe, world: World) -> int:
    """Parts of this process's share of a batch."""
    return max(1, recipe.train.micro_batches // world.size)
