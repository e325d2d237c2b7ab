"""Run one optimizer step, and the untimed steps before the clock starts."""

import torch
from torch import Tensor

from codec.errors import CodecError
from trainer.data.loader import Loader
from trainer.distributed import World
from trainer.optim.optimizers import Optimizers
from trainer.optim.schedule import Phase, muon_momentum, phases
from trainer.recipe import Recipe
from trainer.run.losses import Loss, Losses
from trainer.run.state import State, copy_of

Parts = list[tuple[Tensor, Tensor]]
"""Micro-batches: inputs and targets, int64 [B, T] each."""


def micro_batches(recipe: Recipe, world: World, phase: Phase) -> int:
    """Return the parts of this process's share of a step's batch, which are of one size in all phases.

    Raises:
        CodecError: rows cannot be divided evenly.
    """
    train = recipe.train
    parts = max(1, phase.batch_tokens * train.micro_batches // train.batch_tokens // world.size)
    rows = phase.batch_tokens // recipe.model.window
    if rows % (world.size * parts):
        raise CodecError(
            f"recipe: a batch of {rows} rows cannot be divided among {world.size} processes with {parts} micro-batches "
            "each; change train.batch_tokens or train.micro_batches"
        )
    return parts


def take(loader: Loader, position: int, phase: Phase, recipe: Recipe, world: World) -> Parts:
    """Return this process's micro-batches of the step that begins `position` tokens into the stream of its phase.

    A phase with shorter rows gets the same tokens in the same order, with the rows of the full window cut up.
    """
    window = recipe.model.window
    inputs, targets = loader.take(position // window, phase.batch_tokens // window, phase.late)
    parts = micro_batches(recipe, world, phase)
    rows = [part.view(-1, phase.window).chunk(parts) for part in (inputs, targets)]
    return list(zip(*rows, strict=True))


def descend(state: State, loss: Loss, parts: Parts, recipe: Recipe, scale: float) -> Tensor:
    """Make one optimizer step on the mean loss of micro-batches, learning rates times `scale`.

    Returns:
        the mean loss in nats of this process's share of the batch: a scalar on the device, not waited for.
    """
    losses = []
    for inputs, targets in parts:
        part = loss(inputs, targets) / len(parts)
        part.backward()
        losses.append(part.detach())
    state.optimizers.step(scale, muon_momentum(recipe.optim, state.step))
    state.model.zero_grad(set_to_none=True)
    return torch.stack(losses).sum()


def prime(state: State, losses: Losses, loader: Loader, recipe: Recipe, world: World) -> None:
    """Make steps that compile and warm every kernel, and undo their effect on the state."""
    weights = copy_of(state.model.state_dict())
    for phase in phases(recipe):
        loss = losses.of(state.model, phase)
        for _ in range(recipe.train.prime_steps):
            descend(state, loss, take(loader, 0, phase, recipe, world), recipe, 1.0)
    state.model.load_state_dict(weights)
    state.optimizers = Optimizers(state.model, recipe.optim, world)
    torch.cuda.synchronize(world.device)
