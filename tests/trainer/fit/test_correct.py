"""trainer.fit.correct: groups, predictions by brute force, measured costs, and moments that take them up."""

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

from codec.model.checkpoint import Checkpoint, save_checkpoint
from codec.model.parameters import parameters
from codec.quantization.calibration import Moments, load_calibration
from tests.support.helpers import PLAIN, RARE_OPTIONS, ROOT, random_weights
from trainer.data.sample import sp1024
from trainer.fit.calibrate import calibrate, calibrate_checkpoint, hold_out
from trainer.fit.correct import BITS, LIMIT, Correction, corrected, divergence, groups, measure, predicted
from trainer.model.gpt import GPT

CONFIG = replace(
    RARE_OPTIONS, embedding_dim=0, vocab_size=24, window=8, model_dim=16, num_heads=2, num_kv_heads=1, bigram_dim=6
)


def model(config=CONFIG) -> GPT:
    found = GPT(config)
    found.load_state_dict(random_weights(config))
    return found


def batches(count: int, seed: int = 5) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(CONFIG.vocab_size, (8, 8), generator=generator) for _ in range(count)]


def test_groups_hold_every_matrix_once():
    found = groups(CONFIG)
    names = [name for each in found.values() for name in each]
    assert sorted(names) == sorted(name for name, p in parameters(CONFIG).items() if p.role != "vector")
    assert found["attn.q+k looped"] == ["blocks.1.attn.c_q.weight", "blocks.1.attn.c_k.weight"]
    parts = [f"blocks.{layer}.mlp.proj.{part}.weight" for layer in (0, 2) for part in ("inner", "outer")]
    assert found["mlp.proj"] == parts
    assert found["bigram.embed"] == ["bigram.embed.weight"]
    assert set(groups(PLAIN)) == {"tok_emb", "attn.q+k", "attn.v+proj", "mlp.fc", "mlp.proj"}


@pytest.mark.parametrize("full", [(True, True), (True, False), (False, True), (False, False)])
def test_prediction_by_definition(full):
    rng = np.random.default_rng(0)
    error = rng.normal(size=(5, 7)).astype(np.float32)
    h, g = (lambda x: (x.T @ x).astype(np.float32))(rng.normal(size=(9, 7))), np.diag(rng.random(5)).astype(np.float32)
    g += 0.1
    if not full[0]:
        h = np.diag(np.diag(h))
    if not full[1]:
        g = np.diag(np.diag(g))
    found = predicted(error, Moments(h if full[0] else np.diag(h), g if full[1] else np.diag(g)))
    assert found == pytest.approx(np.trace(g @ error @ h @ error.T) / 2, rel=1e-5)


def test_divergence_by_definition():
    truth, found = torch.randn(2, 3, 5, 9, generator=torch.Generator().manual_seed(1)).double()
    p, q = truth.exp() / truth.exp().sum(-1, keepdim=True), found.exp() / found.exp().sum(-1, keepdim=True)
    assert divergence(truth, found).item() == pytest.approx((p * (p / q).log()).sum().item())
    assert divergence(truth, truth + 7.0).item() == pytest.approx(0, abs=1e-12)


def test_costs_are_those_of_the_group_alone():
    """Measured again by hand; and the model is as it was."""
    gpt, held, told = model(), batches(2, 6), []
    moments = calibrate(gpt, batches(3))
    found = {correction.group: correction for correction in measure(gpt, moments, held, told.append)}
    assert list(found) == list(groups(CONFIG))
    assert sum(told) == pytest.approx(1)
    assert all(torch.equal(t, random_weights(CONFIG)[name]) for name, t in gpt.state_dict().items())
    assert all(correction.predicted > 0 and correction.measured > 0 for correction in found.values())
    for group, correction in found.items():
        assert 1 / 5 < correction.factor < 5, group
    again = measure(gpt, {n: Moments(m.inputs, 2 * m.outputs) for n, m in moments.items()}, held)
    for correction in again:  # the steps of a group's unit and the errors stay the same
        assert correction.predicted == pytest.approx(2 * found[correction.group].predicted, rel=1e-3)
        assert correction.measured == pytest.approx(found[correction.group].measured, rel=1e-3, abs=2e-8)


def test_a_group_of_zeros_costs_nothing():
    gpt = model()
    with torch.no_grad():
        for name in groups(CONFIG)["mlp.fc"]:
            gpt.get_parameter(name).zero_()
    found = {c.group: c for c in measure(gpt, calibrate(gpt, batches(2)), batches(1, 6))}
    assert (found["mlp.fc"].predicted, found["mlp.fc"].measured, found["mlp.fc"].factor) == (0, 0, 1)


def test_rows_that_no_text_uses_are_left_alone():
    """The moments know nothing of them, though other text may use them."""
    gpt = model()
    moments = calibrate(gpt, batches(2))
    outputs = np.zeros_like(moments["bigram.embed.weight"].outputs)
    moments["bigram.embed.weight"] = Moments(moments["bigram.embed.weight"].inputs, outputs)
    found = {c.group: c for c in measure(gpt, moments, batches(1, 6))}
    assert (found["bigram.embed"].predicted, found["bigram.embed"].measured) == (0, pytest.approx(0, abs=1e-9))


def test_blocks_that_run_several_times_are_found_out():
    """A block whose two uses see the same input doubles its error, which costs four times one use and not twice."""
    config = replace(
        PLAIN,
        vocab_size=24,
        window=8,
        model_dim=16,
        num_heads=2,
        num_kv_heads=1,
        num_layers=2,
        loop_end=1,
        loop_count=8,
    )
    gpt = model(config)
    with torch.no_grad():
        for name, parameter in gpt.named_parameters():
            if name.endswith(("attn_scale", "mlp_scale")):
                parameter.mul_(0.02)
            if name == "skip_weights":
                parameter.zero_()
            if name.endswith("resid_mix"):
                parameter.copy_(torch.stack((torch.ones(16), torch.zeros(16))))
    found = {c.group: c.factor for c in measure(gpt, calibrate(gpt, batches(12)), batches(4, 6))}
    assert found["mlp.proj looped"] > 2.5 * found["mlp.proj"]
    assert found["attn.v+proj looped"] > 2.5 * found["attn.v+proj"]


def test_factors_are_bounded_and_applied_to_the_outputs():
    assert Correction("g", ("a",), 2.0, 3.0).factor == 1.5
    assert Correction("g", ("a",), 1.0, 100.0).factor == LIMIT
    assert Correction("g", ("a",), 100.0, 1.0).factor == 1 / LIMIT
    assert Correction("g", ("a",), 1.0, -1e-9).factor == 1
    moments = {name: Moments(np.eye(2, dtype=np.float32), np.ones(2, np.float32)) for name in "ab"}
    found = corrected(moments, [Correction("g", ("a",), 2.0, 3.0), Correction("h", ("b",), 1.0, 2.0)])
    assert found["a"].outputs.tolist() == [1.5, 1.5] and found["b"].outputs.tolist() == [2, 2]
    assert found["a"].inputs is moments["a"].inputs
    assert found["a"].outputs.dtype == np.float32


def test_held_out_rows_are_the_last():
    rows = torch.arange(20 * 8).view(20, 8)
    seen, held = hold_out(list(rows.split(3)), 17)
    assert torch.equal(torch.cat(seen), rows[:2]) and torch.equal(torch.cat(held), rows[2:])
    assert [len(torch.cat(part)) for part in hold_out([rows], 10**6)] == [15, 5]
    assert [len(torch.cat(part)) for part in hold_out([rows[:2]], 1)] == [1, 1]
    assert all(torch.equal(torch.cat(part), rows[:1]) for part in hold_out([rows[:1]], 100))


COMMAND = """
from underpar.commands import app

app()
"""


@pytest.mark.long
def test_the_command_and_two_processes(tmp_path: Path):
    """`underpar calibrate` under torchrun writes what it writes alone, and says what it measured."""
    config = replace(PLAIN, loop_end=1, loop_count=2)
    (tmp_path / "command.py").write_text(COMMAND)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    results = []
    for folder, launch in (
        ("one", []),
        ("two", ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]),
    ):
        save_checkpoint(tmp_path / folder, random_weights(config), config, sp1024())
        words = ["command.py", "calibrate", folder, "--tokens", "4096", "--json"]
        done = subprocess.run(
            [sys.executable, *launch, *words], env=environment, cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        results.append(json.loads(done.stdout))
    one, two = results
    assert one["matrices"] == 13 and one["tokens"] == 4096
    assert set(one["factors"]) == set(groups(config))
    assert two["factors"] == pytest.approx(one["factors"], rel=1e-3)
    moments = [load_calibration(tmp_path / folder / "calibration.safetensors") for folder in ("one", "two")]
    for name, of in moments[0].items():
        other = moments[1][name]
        assert np.abs(of.inputs - other.inputs).max() <= 1e-4 * np.abs(of.inputs).max()
        assert np.abs(of.outputs - other.outputs).max() <= 2e-3 * np.abs(of.outputs).max()


def test_without_correction_the_moments_are_as_summed():
    checkpoint = Checkpoint(random_weights(PLAIN), PLAIN, sp1024())
    plain = calibrate_checkpoint(checkpoint, None, 512, correct=False)
    assert plain.corrections == () and plain.tokens == 512
    full = calibrate_checkpoint(checkpoint, None, 512)
    assert full.tokens == 512
    by_name = {name: c.factor for c in full.corrections for name in c.matrices}
    assert set(by_name) == set(plain.moments)
    assert BITS == 4
