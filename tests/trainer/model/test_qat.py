"""trainer.model.qat: quantizers against codec's, gradients straight through, and runs whose end sees a quantizer."""

import json
import subprocess
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from codec.errors import FormatError, MismatchError
from codec.model.checkpoint import load_checkpoint
from codec.model.parameters import parameters
from codec.quantization.calibration import Moments, save_calibration
from codec.quantization.quantizers import Binary, Matrix, Quantizer, RowAbsmax, Ternary
from codec.quantization.sensitivity import SensitivityGrid
from tests.support.helpers import PLAIN, RARE_OPTIONS, random_weights
from tests.trainer.run import test_loop
from tests.trainer.run.test_loop import assert_same_run, command, environment, metrics, recipe_of
from trainer.distributed import ALONE
from trainer.fit.calibrate import calibrate
from trainer.model.gpt import GPT
from trainer.model.qat import EACH, Rounding, SensitivitySteps, Weights, quantized_loss, rounding_of, straight_through
from trainer.optim.schedule import Phase, phase, phases
from trainer.recipe import QAT, Recipe, TrainRecipe, load_recipe
from trainer.run.loop import train
from trainer.run.losses import losses_of
from trainer.run.state import State

config, one_thread = test_loop.config, test_loop.one_thread

CONFIG = replace(RARE_OPTIONS, vocab_size=24, window=8, model_dim=16, num_heads=2, num_kv_heads=1, bigram_dim=6)
NO_MOMENTS = Moments(np.zeros(0, np.float32), np.zeros(0, np.float32))


def model(config=CONFIG) -> GPT:
    found = GPT(config)
    found.load_state_dict(random_weights(config))
    return found


def rows(seed: int = 5) -> Tensor:
    return torch.randint(24, (6, 8), generator=torch.Generator().manual_seed(seed))


def gaussian(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(2))


def by_codec(quantizer: Quantizer, weights: Tensor) -> Tensor:
    return torch.from_numpy(quantizer(Matrix("w", "matrix", weights.numpy(), NO_MOMENTS)).dequantize())


def test_recipes_know_the_strategies():
    assert tuple(EACH) == QAT


@pytest.mark.parametrize("bits", [8, 6, 5, 4])
def test_integers_are_those_of_codec(bits):
    """On rows whose steps are powers of two, so that codec has nothing to round."""
    weights = gaussian(20, 33).clamp(-4, 4)
    limit = (1 << (bits - 1)) - 1
    weights[:, 0] = limit * 2.0 ** (torch.arange(20) % 3 + (2 - bits))
    weights = torch.where(weights.abs() > weights[:, :1], 0.3, weights)
    weights[3] = 0
    found = EACH[f"int{bits}"](weights)
    assert torch.equal(found, by_codec(RowAbsmax(bits), weights))
    assert len(found[0].unique()) > 7


@pytest.mark.parametrize(("name", "quantizer"), [("ternary", Ternary()), ("binary", Binary())])
def test_end_points_are_those_of_codec(name, quantizer):
    weights = gaussian(20, 33)
    weights[3] = 0
    weights[4, :5] = 0
    found, expected = EACH[name](weights), by_codec(quantizer, weights)
    assert torch.equal(found.sign(), expected.sign())
    assert torch.allclose(found, expected, rtol=2**-10)
    assert found[3].abs().max() == 0


def entropy(integers: Tensor) -> float:
    shares = integers.unique(return_counts=True)[1] / integers.numel()
    return float(-(shares * shares.log2()).sum())


@pytest.mark.parametrize("bits", [3, 4])
def test_grids_cost_the_bits_that_they_are_named_by(bits):
    weights = 0.02 * gaussian(300, 200)
    found = EACH[f"grid{bits}"](weights)
    steps = found[found > 0].min()
    integers = found / steps
    assert torch.allclose(integers, integers.round(), atol=1e-3)
    assert entropy(integers.round()) == pytest.approx(bits, abs=0.03)
    assert EACH[f"grid{bits}"](torch.zeros(3, 4)).abs().max() == 0


def test_steps_of_moments_are_those_of_codec():
    rng = np.random.default_rng(1)
    weights = {"a": 0.1 * gaussian(60, 80), "b": 3 * gaussian(50, 40), "zero": torch.zeros(5, 4)}
    weights["b"][7] = 0
    moments = {}
    for name, matrix in weights.items():
        x = rng.normal(size=(300, matrix.shape[1])) @ rng.normal(size=(matrix.shape[1],) * 2)
        moments[name] = Moments((x.T @ x / 300).astype(np.float32), rng.lognormal(size=len(matrix)).astype(np.float32))
    shapes = {name: (m.shape[0], m.shape[1]) for name, m in weights.items()}
    rounding = SensitivitySteps(3.5, moments, shapes, torch.device("cpu"))
    unit, found = rounding.unit(weights), rounding(weights)
    for name, matrix in weights.items():
        expected = SensitivityGrid(unit.item(), states=0)(Matrix(name, "matrix", matrix.numpy(), moments[name]))
        steps = torch.from_numpy(expected.rows)[:, None] * torch.from_numpy(expected.columns)
        assert torch.allclose(unit * rounding.rows[name] * rounding.columns[name], steps, rtol=1e-6)
        assert torch.allclose(found[name], (matrix / steps).round() * steps, atol=1e-5)
    assert found["zero"].abs().max() == 0
    alive = 60 * 80 + 49 * 40
    assert sum_of_rates(weights, rounding, unit.item()) / alive == pytest.approx(3.5, abs=1e-4)


def sum_of_rates(weights: Weights, rounding: SensitivitySteps, unit: float) -> float:
    """Bits of all weights as if each row were Gaussian, weight by weight."""
    total = 0.0
    for name, matrix in weights.items():
        for r, row in enumerate(matrix.double()):
            if row.any():
                steps = unit * rounding.rows[name][r].double() * rounding.columns[name].double()
                total += (0.5 * (2 * torch.pi * torch.e * row.square().mean()).log2() - steps.log2()).sum().item()
    return total


def all_roundings() -> dict[str, Rounding]:
    gpt = model()
    shapes = {name: (p.shape[0], p.shape[1]) for name, p in parameters(CONFIG).items() if p.role != "vector"}
    found: dict[str, Rounding] = {name: rounding_of(gpt, TrainRecipe(qat=name)) for name in QAT}
    moments = calibrate(gpt, [rows(1)])
    return {**found, "moments": SensitivitySteps(4.0, moments, shapes, torch.device("cpu"))}


@pytest.mark.parametrize("name", [*QAT, "moments"])
def test_loss_and_gradients_are_those_at_the_quantized_weights(name):
    """Of every parameter: looped blocks, both uses of the embedding, the hash table, and vectors."""
    rounding = all_roundings()[name]
    gpt, quantized = model(), model()
    with torch.no_grad():
        weights = {n: p for n, p in quantized.named_parameters() if parameters(CONFIG)[n].role != "vector"}
        for n, matrix in rounding({n: p.clone() for n, p in weights.items()}).items():
            assert not torch.equal(matrix, weights[n])
            weights[n].copy_(matrix)
    targets = rows(6)
    found = quantized_loss(gpt, rounding)(rows(), targets)
    expected = quantized.loss(rows(), targets)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    found.backward()
    expected.backward()
    for (n, p), q in zip(gpt.named_parameters(), quantized.parameters(), strict=True):
        assert p.grad is not None and q.grad is not None
        assert torch.allclose(p.grad, q.grad, rtol=1e-3, atol=1e-5 * q.grad.abs().max()), n
        assert torch.equal(p, random_weights(CONFIG)[n])
    each = quantized_loss(gpt, rounding)(rows(), targets, "none")
    assert each.shape == targets.shape and each.mean().item() == pytest.approx(found.item(), rel=1e-5)
    assert list(gpt.state_dict()) == list(model().state_dict())


def test_rounding_sees_no_gradients():
    def rounding(weights: Weights) -> Weights:
        return {name: (3 * matrix).round() for name, matrix in weights.items()}

    weight = gaussian(3, 4).requires_grad_()
    seen = straight_through({"w": weight}, rounding)["w"]
    assert torch.allclose(seen, (3 * weight).round(), atol=1e-6)
    (seen * torch.arange(4.0)).sum().backward()
    assert weight.grad is not None and torch.equal(weight.grad, torch.arange(4.0).expand(3, 4))


def test_it_compiles_to_one_graph():
    gpt = model(PLAIN)
    loss = quantized_loss(gpt, rounding_of(gpt, TrainRecipe(qat="ternary")))
    compiled = torch.compile(loss, dynamic=False, backend="eager", fullgraph=True)
    assert compiled(rows(), rows()).item() == pytest.approx(loss(rows(), rows()).item())


def test_off_is_the_plain_loss():
    gpt = model()
    losses = losses_of(gpt, Recipe(), ALONE)
    assert losses.plain == losses.quantized == gpt.loss
    assert not phase_of(TrainRecipe(), 19_999, 599.0).quantizes


def phase_of(train: TrainRecipe, step: int, elapsed: float) -> Phase:
    return phase(Recipe(train=train), step, elapsed)


def phases_of(train: TrainRecipe) -> list[tuple[bool, bool]]:
    return [(found.loops, found.quantizes) for found in phases(Recipe(train=train))]


def test_the_end_of_a_run_sees_the_quantizer():
    by_steps = TrainRecipe(qat="int6", qat_fraction=0.25, iterations=8, seconds=0.0)
    assert [phase_of(by_steps, step, 1.0).quantizes for step in range(8)] == 6 * [False] + 2 * [True]
    by_clock = TrainRecipe(qat="int6", qat_fraction=0.25, iterations=0, seconds=80.0)
    assert [phase_of(by_clock, 3, second).quantizes for second in (0.0, 59.0, 60.0, 79.0)] == [False, False, True, True]
    assert phase_of(replace(by_clock, iterations=8), 6, 1.0).quantizes
    assert phase_of(replace(by_clock, qat_fraction=1.0), 0, 0.0).quantizes
    assert phases_of(by_clock) == [(True, False), (True, True)]
    assert phases_of(replace(by_clock, loop_from=0.5)) == [(False, False), (True, False), (True, True)]
    assert phases_of(replace(by_clock, loop_from=0.9)) == [(False, False), (False, True), (True, True)]
    assert phases_of(replace(by_clock, qat="", loop_from=0.5)) == [(False, False), (True, False)]


HALF = ("train.qat=int5", "train.qat_fraction=0.5", "train.iterations=12")


def test_a_run_is_the_plain_one_until_then(config: Path, tmp_path: Path):
    train(recipe_of(config, "train.iterations=12"), tmp_path / "plain")
    train(recipe_of(config, *HALF), tmp_path / "qat")
    plain, qat = metrics(tmp_path / "plain"), metrics(tmp_path / "qat")
    assert [line["train_loss"] for line in plain[:6]] == [line["train_loss"] for line in qat[:6]]
    assert plain[6]["train_loss"] != qat[6]["train_loss"]
    assert "quantized_val_loss" not in plain[-1]
    assert qat[-1]["quantized_val_loss"] != qat[-1]["val_loss"]
    assert qat[-1]["quantized_val_loss"] == pytest.approx(
        quantized_val_loss(config, tmp_path / "qat", "int5"), rel=3e-4
    )


def quantized_val_loss(config: Path, folder: Path, name: str) -> float:
    """Of a finished run, every matrix quantized by codec; nats a token."""
    checkpoint = load_checkpoint(folder)
    assert checkpoint.config is not None
    bits = name.removeprefix("int")
    quantizer: Quantizer = RowAbsmax(int(bits)) if bits != name else Ternary()
    gpt = GPT(checkpoint.config)
    for tensor, parameter in parameters(checkpoint.config).items():
        if parameter.role != "vector":
            checkpoint.state_dict[tensor] = by_codec(quantizer, checkpoint.state_dict[tensor])
    gpt.load_state_dict(checkpoint.state_dict)
    tokens = np.fromfile(config.parent / "shards" / "x_val_000000.bin", "<u2")[512 : 512 + 257].astype(np.int64)
    with torch.no_grad():
        return gpt.loss(*(torch.from_numpy(part).view(16, 16) for part in (tokens[:256], tokens[1:]))).item()


@pytest.mark.long
def test_two_processes_train_as_one(config: Path, tmp_path: Path):
    one = train(recipe_of(config, *HALF), tmp_path / "one")
    run = subprocess.run(
        command(config, tmp_path / "two", *HALF, processes=2),
        env=environment(),
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout)["val_loss"] == pytest.approx(one.val_loss, rel=1e-3)
    first, second = metrics(tmp_path / "one"), metrics(tmp_path / "two")
    assert second[-1]["quantized_val_loss"] == pytest.approx(first[-1]["quantized_val_loss"], rel=1e-3)


@pytest.mark.parametrize("stop", [3, 9])
def test_an_interrupted_run_resumes_to_the_same_end(config, tmp_path, monkeypatch, stop):
    """Before and after the quantizer comes in."""
    import signal

    from trainer.run.log import RunLog

    train(recipe_of(config, *HALF), tmp_path / "whole")
    plain_loss = RunLog.loss

    def interrupting(self: RunLog, state: State, *values: Any) -> None:
        plain_loss(self, state, *values)
        if state.step == stop:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(RunLog, "loss", interrupting)
        assert train(recipe_of(config, *HALF), tmp_path / "run").interrupted
    train(recipe_of(config, *HALF), tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "run")


def test_training_for_a_quantizer_pays(config: Path, tmp_path: Path):
    """A model that saw ternary weights loses less by becoming ternary."""
    run = ("train.iterations=100", "train.ema_decay=0")
    train(recipe_of(config, *run), tmp_path / "plain")
    train(recipe_of(config, *run, "train.qat=ternary", "train.qat_fraction=0.6"), tmp_path / "qat")
    loss = partial(quantized_val_loss, config)
    plain, qat = loss(tmp_path / "plain", "ternary"), loss(tmp_path / "qat", "ternary")
    assert qat < plain - 0.1
    assert metrics(tmp_path / "qat")[-1]["quantized_val_loss"] == pytest.approx(qat, rel=1e-3)
    added = [line["val_loss"] for line in (metrics(tmp_path / "plain")[-1], metrics(tmp_path / "qat")[-1])]
    assert qat - added[1] < plain - added[0]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.qat=int7", "train.qat is 'int7'.*'ternary'"),
        ("train.qat_fraction=0", "qat_fraction is 0.*above 0"),
        ("train.qat_fraction=1.5", "qat_fraction is 1.5.*at most 1"),
    ],
)
def test_bad_recipes_say_what_is_expected(override, message):
    with pytest.raises(FormatError, match=message):
        load_recipe("baseline", [override])


def test_calibrations_that_do_not_fit_are_reported(tmp_path):
    gpt, path = model(), tmp_path / "calibration.safetensors"
    save_calibration(path, calibrate(gpt, [rows(1)]))
    assert isinstance(rounding_of(gpt, TrainRecipe(qat="grid4", qat_calibration=str(path))), SensitivitySteps)
    with pytest.raises(FormatError, match=r"is for grids, train\.qat is 'int4'"):
        rounding_of(gpt, TrainRecipe(qat="int4", qat_calibration=str(path)))
    with pytest.raises(FormatError, match="No such file"):
        rounding_of(gpt, TrainRecipe(qat="grid4", qat_calibration=str(tmp_path / "none")))
    with pytest.raises(MismatchError, match="calibrate this checkpoint"):
        rounding_of(model(PLAIN), TrainRecipe(qat="grid4", qat_calibration=str(path)))
