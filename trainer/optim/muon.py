"""Muon (Jordan et al. 2024): momentum with orthogonal updates, for the matrices, divided among the processes."""

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.distributed import Pending, World
from trainer.optim.orthogonal import Quintic, newton_schulz, orthogonalise, polar_express, rows_levelled

METHODS: dict[str, Callable[[], list[Quintic]]] = {"newton_schulz": newton_schulz, "polar_express": polar_express}
"""Ways to make updates orthogonal, by name."""


class Muon:
    """The optimizer of the matrices.

    Matrices of one shape form a stack. Each process keeps the momentum of its share of every stack.

    Args:
        matrices: the parameters, each [R, C].
        world: the processes that hold the same parameters, each with its own gradients.
        method: one of METHODS.
        level_rows: whether rows of an update are scaled to one length before it is made orthogonal.
    """

    def __init__(
        self, matrices: Iterable[nn.Parameter], world: World, method: str = "newton_schulz", level_rows: bool = False
    ):
        self.world, self.quintics, self.level_rows = world, METHODS[method](), level_rows
        self.groups: dict[tuple[int, ...], list[Tensor]] = {}
        for matrix in matrices:
            self.groups.setdefault(tuple(matrix.shape), []).append(matrix)
        self.momenta = [
            torch.zeros(world.share(len(group)), *shape, device=group[0].device) for shape, group in self.groups.items()
        ]

    def reduce(self) -> list[Pending]:
        """Begin to sum the gradients of all processes: this process's share of each stack."""
        found = []
        for group in self.groups.values():
            stack = torch.stack([matrix.grad for matrix in group if matrix.grad is not None])
            missing = self.world.size * self.world.share(len(group)) - len(group)
            found.append(self.world.summed_share(F.pad(stack, (0, 0, 0, 0, 0, missing)) if missing else stack))
        return found

    @torch.no_grad()
    def step(self, shares: list[Tensor], lr: float, momentum: float, weight_decay: float) -> None:
        """Make one update from this process's share of the mean gradients, which is overwritten.

        Decay is decoupled, and tall matrices step sqrt(R / C) further. While the updates of a stack travel to all
        processes, those of the next stack are computed.
        """
        travelling = []
        for gradients, buffer in zip(shares, self.momenta, strict=True):
            buffer.mul_(momentum).add_(gradients)
            update = gradients.add_(buffer, alpha=momentum)  # Nesterov momentum
            if self.level_rows:
                update = rows_levelled(update)
            travelling.append(self.world.gathered(orthogonalise(update, self.quintics)))
        for (shape, group), updates in zip(self.groups.items(), travelling, strict=True):
            reach = lr * max(1.0, shape[0] / shape[1]) ** 0.5
            torch._foreach_mul_(group, 1 - lr * weight_decay)
            torch._foreach_add_(group, updates.wait()[: len(group)].float().unbind(), alpha=-reach)

    def state(self) -> list[Tensor]:
        """Return the momenta of all matrices, a stack [N, R, C] for each shape; every process must call this."""
        whole = [self.world.gathered(buffer).wait() for buffer in self.momenta]
        return [stack[: len(group)] for stack, group in zip(whole, self.groups.values(), strict=True)]

    def load_state(self, stacks: list[Tensor]) -> None:
        """Restore the momenta of `state`, from a run of any number of processes."""
        for mine, stack, group in zip(self.momenta, stacks, self.groups.values(), strict=True):
            if stack.shape != (len(group), *mine.shape[1:]):
                raise ValueError(f"momenta of {tuple(stack.shape)} for {len(group)} matrices {tuple(mine.shape[1:])}")
            part = stack[self.world.rank * len(mine) : (self.world.rank + 1) * len(mine)]
            mine.zero_()[: len(part)].copy_(part)
