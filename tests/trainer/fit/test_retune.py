"""trainer.fit.retune: vectors that take up what coarse integers did, and packs that are never worse for it."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import codec
from codec.errors import FormatError, MismatchError
from codec.model.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from codec.model.parameters import parameters
from codec.quantization.quantized import TUNING, Quantized, StepGrid, Tuning
from codec.quantization.quantizers import RowAbsmax
from codec.quantization.sensitivity import SensitivityGrid
from tests.support.helpers import PLAIN, RARE_OPTIONS, ROOT, random_weights
from trainer.data.sample import sp1024
from trainer.fit.correct import divergence
from trainer.fit.retune import CHECKS, HELD_TOKENS, kept, retune, retune_pack
from trainer.model.gpt import GPT

CONFIG = replace(
    RARE_OPTIONS, random_rank=0, vocab_size=24, window=8, model_dim=16, num_heads=2, num_kv_heads=1, bigram_dim=6
)


def model(weights: dict[str, Tensor], config=CONFIG) -> GPT:
    found = GPT(config)
    found.load_state_dict(weights)
    return found.eval()


def disturbed(factor: float = 0.7, config=CONFIG) -> dict[str, Tensor]:
    """Weights with an error that vectors can take back: matrices are shrunk."""
    weights = random_weights(config)
    for name in weights:
        if name.endswith(("attn.proj.weight", "mlp.proj.weight")):
            weights[name] = factor * weights[name]
    return {name: kept(w) if parameters(config)[name].role == "vector" else w for name, w in weights.items()}


def batches(count: int, seed: int = 5) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(CONFIG.vocab_size, (8, 8), generator=generator) for _ in range(count)]


@torch.no_grad()
def cost(a: GPT, b: GPT, held: list[Tensor]) -> float:
    return sum(divergence(a(rows), b(rows)).item() for rows in held) / sum(rows.numel() for rows in held)


def test_vectors_take_up_an_error(monkeypatch):
    monkeypatch.setattr("trainer.fit.retune.LEARNING_RATE", 0.02)
    held, told = batches(2, 6), []
    reference, quantized = model(random_weights(CONFIG)), model(disturbed())
    found = retune(reference, quantized, {}, batches(20), held, 60, told.append)
    start = model(disturbed())
    assert found.before == pytest.approx(cost(reference, start, held))
    assert found.after < 0.2 * found.before
    assert told == 60 * [1]
    assert found.vectors.keys() == {n for n, p in parameters(CONFIG).items() if p.role == "vector"}
    for name, weight in quantized.state_dict().items():
        if name in found.vectors:
            assert torch.equal(weight, found.vectors[name])
            assert torch.equal(weight, weight.half().float())
            start.get_parameter(name).data.copy_(weight)
        else:
            assert torch.equal(weight, disturbed()[name])
    assert found.after == pytest.approx(cost(reference, start, held))
    assert all(torch.equal(t, random_weights(CONFIG)[name]) for name, t in reference.state_dict().items())
    assert all(p.grad is None for p in reference.parameters())


def test_nothing_worse_is_returned(monkeypatch):
    """With a learning rate that ruins the model: the start comes back, to the bit."""
    monkeypatch.setattr("trainer.fit.retune.LEARNING_RATE", 10.0)
    quantized = model(disturbed(0.99))
    found = retune(model(random_weights(CONFIG)), quantized, {}, batches(3), batches(1, 6), 12)
    assert found.after == found.before
    assert all(torch.equal(t, disturbed(0.99)[name]) for name, t in quantized.state_dict().items())


def stepped(factor: float) -> tuple[dict[str, Quantized], dict[str, Tensor]]:
    """Matrices of random weights with rows and columns that are wrong by up to `factor`, and these weights."""
    random, matrices, weights = np.random.default_rng(3), {}, random_weights(CONFIG)
    for name, parameter in parameters(CONFIG).items():
        if parameter.role == "matrix":
            (height, width), zeros = parameter.shape, [np.zeros(n, np.int32) for n in parameter.shape]
            grid = StepGrid(1 / 64, *zeros)
            wrong = Tuning(
                *(np.rint(256 * (factor ** random.uniform(-1, 1, n) - 1)).astype(np.int32) for n in (height, width))
            )
            integers = np.rint(64 * weights[name].numpy()).astype(np.int32)
            start = replace(grid, tuning=wrong)
            matrices[name] = Quantized(integers, start.row_steps(), start.column_steps(), grid=start)
            weights[name] = torch.from_numpy(matrices[name].dequantize())
    return matrices, weights


def test_steps_take_up_an_error(monkeypatch):
    """Steps of rows and columns that are wrong are put right, and the tensors are those of the tunings returned."""
    monkeypatch.setattr("trainer.fit.retune.LEARNING_RATE", 1e-9)
    monkeypatch.setattr("trainer.fit.retune.WEIGHTS_A_STEP", 1)
    matrices, weights = stepped(1.2)
    quantized = model(weights)
    found = retune(model(random_weights(CONFIG)), quantized, matrices, batches(20), batches(2, 6), 60)
    assert found.after < 0.3 * found.before
    assert found.tunings.keys() == matrices.keys()
    for name, tuning in found.tunings.items():
        old = matrices[name]
        rows, columns = (1 + each.astype(np.float32) / TUNING for each in tuning)
        expected = old.symbols * (old.rows * rows)[:, None] * (old.columns * columns)
        assert np.allclose(quantized.state_dict()[name], expected, rtol=1e-6)
    monkeypatch.setattr("trainer.fit.retune.WEIGHTS_A_STEP", 10**6)
    assert not retune(model(random_weights(CONFIG)), quantized, matrices, batches(1), batches(1, 6), 1).tunings


@pytest.mark.parametrize("steps", [1, 3, 5, 7, 200])
def test_the_last_step_is_always_looked_at(steps):
    looked = [step for step in range(steps) if (step + 1) * CHECKS // steps > step * CHECKS // steps]
    assert looked[-1] == steps - 1
    assert len(looked) == min(steps, CHECKS)


def test_rounding_is_that_of_packs():
    for values in (torch.tensor([1 / 3, 1e-9, -7.7]), torch.tensor([1e6, 1 / 3]), torch.zeros(0)):
        blob = codec.compress({"v": values}, vectors="float16")
        assert torch.equal(kept(values), codec.decompress(blob)["v"])


def checkpoint(tokenizer=None) -> Checkpoint:
    return Checkpoint(random_weights(PLAIN), PLAIN, tokenizer or sp1024())


def coarse_pack() -> bytes:
    return codec.compress(random_weights(PLAIN), PLAIN, sp1024(), quantizer=RowAbsmax(3))


def test_packs_keep_their_integers(monkeypatch):
    monkeypatch.setattr("trainer.fit.retune.LEARNING_RATE", 0.02)
    monkeypatch.setitem(HELD_TOKENS, "cpu", 512)
    blob = coarse_pack()
    tuned, found = retune_pack(blob, checkpoint(), None, 40)
    assert found.after < 0.97 * found.before
    before, after = codec.open(blob), codec.open(tuned)
    assert all(np.array_equal(q.symbols, after.matrices[n].symbols) for n, q in before.matrices.items())
    assert all(np.array_equal(q.rows, after.matrices[n].rows) for n, q in before.matrices.items())
    state = after.state_dict()
    assert all(torch.equal(state[name], vector) for name, vector in found.vectors.items())
    assert (after.config, after.tokenizer is not None) == (PLAIN, True)


def test_packs_take_tuned_steps(monkeypatch):
    """The pack has the tunings, the weights and the divergence that were measured; a tuned pack is not tuned again."""
    monkeypatch.setattr("trainer.fit.retune.WEIGHTS_A_STEP", 4)
    monkeypatch.setitem(HELD_TOKENS, "cpu", 512)
    blob = codec.compress(random_weights(PLAIN), PLAIN, sp1024(), quantizer=SensitivityGrid(0.5))
    tuned, found = retune_pack(blob, checkpoint(), None, 20)
    assert found.after < 0.97 * found.before and len(tuned) > len(blob)
    before, after = codec.open(blob), codec.open(tuned)
    assert all(np.array_equal(q.symbols, after.matrices[n].symbols) for n, q in before.matrices.items())
    tunings = {name: q.grid.tuning for name, q in after.matrices.items() if q.grid}
    assert tunings.keys() == found.tunings.keys()
    assert all(np.array_equal(a, b) for n in tunings for a, b in zip(tunings[n], found.tunings[n], strict=True))
    with pytest.raises(MismatchError, match="its steps are tuned"):
        retune_pack(tuned, checkpoint(), None, 1)


def test_what_does_not_fit_is_reported(tmp_path: Path):
    with pytest.raises(MismatchError, match="not the checkpoint's"):
        retune_pack(codec.compress({"w": torch.ones(3)}), checkpoint(), None, 1)
    other = Checkpoint(random_weights(CONFIG), CONFIG, sp1024())
    with pytest.raises(MismatchError, match="not the checkpoint's"):
        retune_pack(coarse_pack(), other, None, 1)
    with pytest.raises(FormatError, match="no config or no tokenizer"):
        retune_pack(coarse_pack(), Checkpoint(random_weights(PLAIN), PLAIN, None), None, 1)
    (tmp_path / "short.txt").write_text("Some text that is too short for this, " * 4)
    with pytest.raises(FormatError, match="expected at least 128"):
        retune_pack(coarse_pack(), checkpoint(), tmp_path / "short.txt", 1)


COMMAND = """
from underpar.commands import app

app()
"""


def test_the_command(tmp_path: Path):
    save_checkpoint(tmp_path / "run", random_weights(PLAIN), PLAIN, sp1024())
    assert load_checkpoint(tmp_path / "run").config == PLAIN
    (tmp_path / "a.pack").write_bytes(coarse_pack())
    (tmp_path / "command.py").write_text(COMMAND)
    words = ["command.py", "retune", "a.pack", "run", "-o", "b.pack", "--steps", "5", "--json"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, *words], env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    tuned = (tmp_path / "b.pack").read_bytes()
    assert (result["pack_bytes"], result["pack_bytes_before"]) == (len(tuned), len(coarse_pack()))
    assert result["kl_nats"] <= result["kl_nats_before"]
    assert codec.open(tuned).config == PLAIN
