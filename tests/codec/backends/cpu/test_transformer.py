"""codec.backends.cpu.transformer: the reference's integers for every family, and faults that are noticed."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import codec
from codec.backends.agree import TRIALS, agree
from codec.backends.cpu import transformer as cpu
from codec.backends.cpu.transformer import CpuTransformer
from codec.backends.select import make_backend
from codec.exact.reference import TorchBackend
from codec.numerics.widths import total_bits
from tests.support.families import FAMILIES, LLAMA, family_pack, family_weights


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family(name):
    model, generator = family_pack(FAMILIES[name]).exact(), np.random.default_rng(0)
    fast, slow = CpuTransformer(model.weights), TorchBackend(model)
    inputs, targets = ([generator.integers(0, 400, n) for n in lengths] for lengths in ((64, 1, 33), (64, 1, 20)))
    found, expected = fast.score(inputs, targets), slow.score(inputs, targets)
    assert np.array_equal(found[:2], expected[:2])
    assert np.abs(found[2] - expected[2]).max() < 1e-9
    assert agree(fast, slow, model.config, TRIALS["cpu"])


def test_documents_longer_than_a_window_that_is_no_multiple_of_a_block():
    model, generator = family_pack(LLAMA).exact(), np.random.default_rng(1)
    documents = generator.integers(0, 400, (3, 151))
    found = []
    for backend in (CpuTransformer(model.weights), TorchBackend(model)):
        past, parts = backend.past(3, 50), []
        for at in range(0, 150, 64):
            rows = documents[:, at : at + 65]
            parts.append(backend.score(list(rows[:, :-1]), list(rows[:, 1:]), past=past)[:2])
        found.append(np.concatenate(parts, 1))
    assert np.array_equal(*found)


def test_a_vocabulary_beyond_16384_symbols():
    """A total of 27 bits, coded and decoded."""
    config = replace(LLAMA, vocab_size=20_000, num_layers=1)
    assert total_bits(config.vocab_size) == 27
    pack = codec.open(codec.compress(family_weights(config), config, family_pack(LLAMA).tokenizer))
    model = pack.exact()
    assert agree(CpuTransformer(model.weights), TorchBackend(model), model.config, TRIALS["cpu"])
    documents = [b"A text.", b"Another one, a little longer."]
    assert codec.decode(pack, codec.encode(pack, documents)) == documents


@pytest.mark.parametrize("part", ["key_scale", "value_scale", "query_gain", "score_unit", "epsilon", "turns"])
def test_a_fault_is_noticed(part, capsys):
    model = family_pack(FAMILIES["qwen3"]).exact()
    fast = CpuTransformer(model.weights)
    constant = getattr(fast._network, part)
    broken = constant * 2 if part != "turns" else np.ascontiguousarray(constant[:, ::-1])
    fast._network = fast._network._replace(**{part: broken})
    assert not agree(fast, TorchBackend(model), model.config, TRIALS["cpu"])


def test_a_machine_that_computes_otherwise_takes_the_reference(monkeypatch, capsys):
    weights = replace(family_pack(LLAMA).weights, sha256="")  # whose verdict is not kept
    assert isinstance(make_backend(weights), CpuTransformer)
    right = cpu.plain_levels
    monkeypatch.setattr(cpu, "plain_levels", lambda *arguments: right(*arguments) + (np.arange(400) == 7))
    assert isinstance(make_backend(weights), TorchBackend)
    assert "does not compute it as torch does" in " ".join(capsys.readouterr().err.split())


def test_logits_saturate():
    logits = np.array([[1e300, -1e300, 0.0, 1.0]])
    levels = cpu.plain_levels(logits, np.zeros(4))
    assert levels.tolist() == [[1 << 28, -(1 << 28), 0, 5909]]
    assert torch.from_numpy(levels).dtype == torch.int32
