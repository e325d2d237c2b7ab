"""The state of a run, and the checkpoint from which a killed run continues as if never interrupted."""

import pickle
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from codec.console import CheckFailed
from codec.errors import FormatError, MismatchError
from codec.files import atomic_write
from trainer.distributed import World
from trainer.kernels.fusion import PLAIN, Fusion, fusion_of
from trainer.model.gpt import GPT
from trainer.model.init import initialise
from trainer.optim.optimizers import Optimizers
from trainer.optim.schedule import averages
from trainer.recipe import Recipe, TrainRecipe, differences

RESUME = "resume.pt"


@dataclass
class State:
    """All values that change while a model trains.

    Attributes:
        model: with the current weights.
        optimizers: with their momenta.
        average: mean of the weights of `averaged` steps by name, moving or plain; empty if the recipe wants none.
        averaged: steps in `average`.
        step: steps made.
        tokens: tokens trained on.
        late: the part of `tokens` from the late shards.
        elapsed: seconds of training.
    """

    model: GPT
    optimizers: Optimizers
    average: dict[str, Tensor]
    averaged: int = 0
    step: int = 0
    tokens: int = 0
    late: int = 0
    elapsed: float = 0.0

    @classmethod
    def start(cls, recipe: Recipe, world: World, weights: Mapping[str, Tensor] | None = None) -> "State":
        """Make the state of step 0, equal in every process and on every device.

        Args:
            recipe: the settings.
            world: the processes.
            weights: the initial ones by name; None: from the recipe's seed.
        """
        plan = recipe.train
        torch.manual_seed(plan.seed)
        model = model_of(recipe, world, fusion_of(recipe, world.device))
        initialise(model, plan.initial)
        if weights is not None:
            model.load_state_dict(weights)
        model = model.to(world.device)
        average = copy_of(model.state_dict()) if plan.ema_decay or plan.swa_every else {}
        return cls(model, Optimizers(model, recipe.optim, world), average)

    def position(self, late: bool) -> int:
        """Return the number of tokens trained on from the late shards, or from the others."""
        return self.late if late else self.tokens - self.late

    @torch.no_grad()
    def update_average(self, train: TrainRecipe) -> None:
        """Take the weights after a step into the average of the recipe.

        The moving average first forgets faster, so that the initial weights lose their influence.
        """
        if train.ema_decay:
            kept = min(train.ema_decay, (1 + self.step) / (10 + self.step))
        elif averages(train, self.step, self.elapsed):
            kept = self.averaged / (self.averaged + 1)
        else:
            return
        self.averaged += 1
        weights = dict(self.model.named_parameters())
        torch._foreach_lerp_([self.average[name] for name in weights], list(weights.values()), 1 - kept)

    def finished(self, recipe: Recipe, world: World) -> GPT:
        """Return the model that the run is for: with the averaged weights if there are any, else the last weights."""
        model = model_of(recipe, world)
        model.load_state_dict(self.average if self.averaged else self.model.state_dict())
        return model.to(world.device)

    def content(self, recipe: Recipe) -> dict[str, Any]:
        """Return the content of a checkpoint as tensors and plain values on the host; every process must call this."""
        content = {
            "recipe": recipe.to_dict(),
            "averaged": self.averaged,
            "step": self.step,
            "tokens": self.tokens,
            "late": self.late,
            "elapsed": self.elapsed,
            "model": self.model.state_dict(),
            "optimizers": self.optimizers.state_dict(),
            "average": self.average,
        }
        return tree_map_only(Tensor, lambda tensor: tensor.detach().to("cpu", copy=True), content)

    def restore(self, folder: Path, recipe: Recipe, device: torch.device) -> None:
        """Restore the state from the checkpoint in `folder`.

        Raises:
            FormatError: the checkpoint cannot be read, or holds something else.
            MismatchError: the checkpoint is of another recipe.
        """
        path = folder / RESUME
        try:
            content = torch.load(path, map_location=device, weights_only=True)
            saved = Recipe.from_dict(content["recipe"])
            if changed := differences(saved, recipe):
                raise MismatchError(f"run {folder}: cannot resume with another recipe ({'; '.join(changed)})")
            self.model.load_state_dict(content["model"])
            self.optimizers.load_state_dict(content["optimizers"])
            for name, average in self.average.items():
                average.copy_(content["average"][name])
            counts = (int(content[name]) for name in ("averaged", "step", "tokens", "late"))
            self.averaged, self.step, self.tokens, self.late = counts
            self.elapsed = float(content["elapsed"])
        except MismatchError:
            raise
        except (OSError, EOFError, RuntimeError, ValueError, KeyError, TypeError, pickle.UnpicklingError) as error:
            raise FormatError(f"checkpoint {path}: cannot be resumed ({error}); train into a new folder") from error


@contextmanager
def open_checkpoints(folder: Path, recipe: Recipe, world: World) -> Iterator[Callable[[State], None]]:
    """Yield a function that writes a state to `folder` while training goes on; every process must call the function.

    A checkpoint replaces its predecessor once complete. The block ends when the last checkpoint is complete.
    """
    pending: list[Future[None]] = []

    def keep(state: State) -> None:
        content = state.content(recipe)
        check_finite(state.step, content["model"], content["average"])
        if world.leads:
            finish()
            pending.append(pool.submit(write_checkpoint, folder / RESUME, content))

    def finish() -> None:
        while pending:
            pending.pop().result()

    with ThreadPoolExecutor(1, "checkpoint") as pool:
        yield keep
        finish()


def check_finite(step: int, *states: Mapping[str, Tensor]) -> None:
    """Check that weights may replace those of a checkpoint.

    Raises:
        CheckFailed: a number is infinite or NaN.
    """
    for name, tensor in ((name, tensor) for state in states for name, tensor in state.items()):
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise CheckFailed(
                f"training diverged: {name} is not finite at step {step}; the checkpoint before stays as it is; "
                "lower the learning rates"
            )


def write_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write a state's content to a file that appears whole."""
    with atomic_write(path) as file:
        torch.save(content, file)


def model_of(recipe: Recipe, world: World, fuse: Fusion = PLAIN) -> GPT:
    """Make a new model of a recipe, on the CPU, in the precision for the process's device."""
    plan, dtype = recipe.train, torch.bfloat16 if world.device.type == "cuda" else torch.float32
    return GPT(recipe.model, qk_gain=plan.qk_gain, dtype=dtype, fuse=fuse, document_masks=plan.document_masks)


def copy_of(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Clone tensors by name."""
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}
