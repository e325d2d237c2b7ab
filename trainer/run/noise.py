"""Replace some tokens of a batch by random ones, the same for any number of processes.

A model that reads a little text often learns rows by heart later when some of what it reads is wrong each time.
"""

import numpy as np
import torch
from torch import Tensor

from trainer.distributed import World
from trainer.recipe import Recipe


class Noise:
    """The random numbers of a step's rows: every process draws those of all, on its device, and keeps its own.

    The token at which documents begin stays where it is and appears nowhere else.

    Args:
        recipe: with the seed and the vocabulary.
        world: the processes.
        tokens: this process's rows, int64 [B, T].
        begin: the token at which documents begin.
        key: integers >= 0 that no other step of the run has.
    """

    def __init__(self, recipe: Recipe, world: World, tokens: Tensor, begin: int, key: tuple[int, ...]):
        self._tokens, self._begin, self._world = tokens, begin, world
        self._vocab_size = recipe.model.vocab_size
        self._draws = torch.Generator(tokens.device).manual_seed(seed_of(recipe.train.seed, *key))

    def replace(self, share: float | Tensor) -> Tensor:
        """Return the rows with a share of their tokens replaced: of all, or of each row, float32 [B, 1]."""
        if isinstance(share, float) and not share:
            return self._tokens
        chosen = self._drawn(self._tokens.shape[1]) < share
        other = (self._drawn(self._tokens.shape[1]) * (self._vocab_size - 1)).long().clamp_max(self._vocab_size - 2)
        other += other >= self._begin
        return torch.where(chosen & (self._tokens != self._begin), other, self._tokens)

    def shares(self, most: float) -> Tensor:
        """Return a random share for each row, from 0 to `most`: float32 [B, 1]."""
        return most * self._drawn(1)

    def _drawn(self, columns: int) -> Tensor:
        """Return random numbers from 0 to 1 for this process's rows, float32 [B, columns]."""
        count = len(self._tokens)
        numbers = torch.rand(self._world.size * count, columns, generator=self._draws, device=self._tokens.device)
        return numbers[self._world.rank * count :][:count]


def seed_of(*key: int) -> int:
    """Return a seed for PyTorch's generators that differs between keys of integers >= 0."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> np.uint64(1))
