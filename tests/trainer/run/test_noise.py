"""trainer.run.noise: the share that is asked for, the same for any number of processes, documents left alone."""

import pytest
import torch

from trainer.distributed import World
from trainer.recipe import Recipe
from trainer.run.noise import Noise, seed_of

ROWS, WIDTH, BEGIN = 8, 4096, 1
TOKENS = torch.randint(4, 1024, (ROWS, WIDTH), generator=torch.Generator().manual_seed(0))
TOKENS[:, ::9] = BEGIN


def noise(rows: torch.Tensor = TOKENS, world: World | None = None, step: int = 3) -> Noise:
    return Noise(Recipe(), world or World(), rows, BEGIN, (step,))


@pytest.mark.parametrize("share", [0.05, 0.5, 1.0])
def test_a_share_of_the_tokens_is_replaced(share: float) -> None:
    found = noise().replace(share)
    free = TOKENS != BEGIN
    assert torch.equal(found != BEGIN, free)
    assert (found != TOKENS)[free].float().mean().item() == pytest.approx(share * 1022 / 1023, abs=0.01)
    drawn = found[found != TOKENS]
    assert drawn.min() == 0 and drawn.max() == 1023 and BEGIN not in drawn


def test_rows_have_shares_of_their_own() -> None:
    draws = noise()
    shares = draws.shares(0.5)
    assert shares.shape == (ROWS, 1) and 0 <= shares.min() < 0.25 < shares.max() <= 0.5
    found = ((draws.replace(shares) != TOKENS) & (TOKENS != BEGIN)).float().mean(1) / (8 / 9)
    assert torch.allclose(found, shares[:, 0], atol=0.03)


def test_nothing_is_replaced_without_noise() -> None:
    assert noise().replace(0.0) is TOKENS


def test_processes_together_do_what_one_does() -> None:
    parts = [noise(rows, World(rank, 4)).replace(0.3) for rank, rows in enumerate(TOKENS.chunk(4))]
    assert torch.equal(torch.cat(parts), noise().replace(0.3))
    assert not torch.equal(noise(step=4).replace(0.3), noise().replace(0.3))


def test_seeds_differ() -> None:
    assert len({seed_of(a, b) for a in range(30) for b in range(30)}) == 900
    assert all(0 <= seed_of(7, b) < 1 << 63 for b in range(50))
