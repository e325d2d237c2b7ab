"""Products in 8 bits: near the plain ones, exact on numbers that need no rounding, and enough to train with."""

from pathlib import Path

import pytest
import torch

from tests.support.helpers import EVERY_OPTION, random_weights
from tests.trainer.run import test_loop
from tests.trainer.run.test_loop import recipe_of
from trainer.kernels.fp8 import E4M3, E5M2, fp8_linear, rounded
from trainer.kernels.fusion import Fusion
from trainer.model.gpt import GPT
from trainer.run.loop import train

config, one_thread = test_loop.config, test_loop.one_thread


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("kind", "scale", "least"), [(E4M3, 1.0, 2.0**-6), (E5M2, 2.0**20, 2.0**-34)])
def test_rounding_keeps_bits_within_the_range_and_holds_what_is_beyond(
    kind: torch.dtype, scale: float, least: float
) -> None:
    greatest, half = torch.finfo(kind).max / scale, torch.finfo(kind).eps / 2
    x = greatest * torch.logspace(-12, 1, 2000) * torch.tensor([1.0, -1.0]).repeat(1000)
    again = rounded(x, scale, kind).double() / scale
    held = x.double().clamp(-greatest, greatest)
    assert ((again - held).abs() <= held.abs().clamp_min(least) * half).all()
    assert (again[x.abs() > greatest].abs() == greatest).all()


def test_numbers_that_need_no_rounding_are_multiplied_exactly() -> None:
    x, matrix, given = (torch.randint(-8, 9, shape).float() for shape in ((2, 5, 16), (32, 16), (2, 5, 32)))
    matrix, given = matrix / 64, given / 1024
    x.requires_grad_()
    out = fp8_linear(x, matrix)
    out.backward(given)
    assert torch.equal(out, x @ matrix.T)
    assert x.grad is not None and torch.equal(x.grad, given @ matrix)


@pytest.mark.parametrize("factor", [2.0**-12, 1.0, 2.0**5])
def test_gradients_are_near_those_of_the_plain_product(factor: float) -> None:
    """Whether those of a mean are larger or much smaller than most."""
    x, matrix, weights = normal(3, 40, 64), normal(32, 64, seed=1) / 8, normal(3, 40, 32, seed=2)
    found, expected = ([x.clone().requires_grad_(), matrix.clone().requires_grad_()] for _ in range(2))
    (fp8_linear(*found) * weights * factor).sum(-1).mean().backward()
    (torch.nn.functional.linear(*expected) * weights * factor).sum(-1).mean().backward()
    for a, b, limit in zip(found, expected, (0.07, 1e-6), strict=True):
        assert a.grad is not None and b.grad is not None
        assert (a.grad - b.grad).norm() < limit * b.grad.norm()
    assert not torch.equal(found[0].grad, expected[0].grad)


@pytest.mark.long
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
