"""Products in 8 bits: near the plain ones, exact on numbers that need no rounding, and enough to train with."""

from pathlib import Path

import pytest
import torch

from tests import test_loop
from tests.helpers import EVERY_OPTION, random_weights
from tests.test_loop import recipe_of
from trainer.fp8 import fp8_linear, rounded
from trainer.fusion import Fusion
from trainer.loop import train
from trainer.model import GPT

config, one_thread = test_loop.config, test_loop.one_thread


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_rounding_keeps_three_bits_of_mantissa() -> None:
    x = normal(50, 64) * torch.logspace(-6, 6, 50)[:, None]
    x[3] = 0
    numbers, scales = rounded(x)
    again = numbers.float() * scales
    assert (again - x).abs().max() <= (x.abs().amax(1, keepdim=True) * 2**-4).max()
    large = x.abs() > x.abs().amax(1, keepdim=True) / 256
    assert ((again - x).abs() <= x.abs() * 2**-4 * (1 + 1e-6))[large].all()
    assert not again[3].any()


def test_numbers_that_need_no_rounding_are_multiplied_exactly() -> None:
    x, matrix = (torch.randint(-8, 9, shape).float() for shape in ((2, 5, 16), (32, 16)))
    x[..., 0] = matrix[:, 0] = 448  # the largest number of the format: scales are 1
    assert torch.equal(fp8_linear(x, matrix), x @ matrix.T)


def test_gradients_are_near_those_of_the_plain_product() -> None:
    x, matrix, weights = normal(3, 40, 64), normal(32, 64, seed=1), normal(3, 40, 32, seed=2)
    found, expected = ([x.clone().requires_grad_(), matrix.clone().requires_grad_()] for _ in range(2))
    (fp8_linear(*found) * weights).sum().backward()
    (torch.nn.functional.linear(*expected) * weights).sum().backward()
    for a, b, limit in zip(found, expected, (0.05, 1e-6), strict=True):
        assert a.grad is not None and b.grad is not None
        assert (a.grad - b.grad).norm() < limit * b.grad.norm()
    assert not torch.equal(found[0].grad, expected[0].grad)


def test_a_model_of_8_bits_is_near_the_plain_one_and_one_graph() -> None:
    models = [GPT(EVERY_OPTION, fuse=Fusion(joint=True, fp8=fp8)) for fp8 in (False, True)]
    rows = torch.randint(1024, (4, 32), generator=torch.Generator().manual_seed(3))
    for model in models:
        model.load_state_dict(random_weights(EVERY_OPTION))
    plain, fp8 = (model.loss(rows, rows.roll(-1, 1)).item() for model in models)
    assert fp8 != plain and fp8 == pytest.approx(plain, rel=0.02)
    compiled = torch.compile(models[1].loss, backend="aot_eager", fullgraph=True, dynamic=False)
    loss = compiled(rows, rows.roll(-1, 1))
    loss.backward()
    assert loss.item() == pytest.approx(fp8, rel=1e-4)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in models[1].parameters())


def test_a_run_in_8_bits_learns(config: Path, tmp_path: Path) -> None:
    plain, fp8 = (
        train(recipe_of(config, "train.iterations=60", f"train.fp8={on}"), tmp_path / on) for on in ("false", "true")
    )
    assert fp8.val_loss is not None and fp8.val_loss != plain.val_loss
    assert fp8.val_loss == pytest.approx(plain.val_loss, rel=0.05)
