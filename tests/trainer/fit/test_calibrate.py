"""trainer.fit.calibrate: moments against sums token by token, and the text that they are taken on."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import codec
from codec.errors import FormatError
from codec.model.checkpoint import Checkpoint
from codec.model.parameters import parameters
from codec.model.tokenizer import BOS
from codec.quantization.calibration import Moments, load_calibration, moments_of
from tests.support.families import FAMILIES, family_weights
from tests.support.helpers import PLAIN, RARE_OPTIONS, ROOT, random_weights
from trainer.data.sample import sp1024
from trainer.fit.calibrate import BATCH_TOKENS, calibrate, float_model, label_seed, text_batches
from trainer.fit.correct import divergence
from trainer.model.gpt import GPT
from trainer.model.transformer import Transformer

CONFIG = replace(RARE_OPTIONS, vocab_size=24, window=8, model_dim=16, num_heads=2, num_kv_heads=1, bigram_dim=6)
SMALL = replace(PLAIN, vocab_size=24, window=8, model_dim=16, num_heads=2)


def model(config=CONFIG) -> GPT:
    found = GPT(config)
    found.load_state_dict(random_weights(config))
    return found


def batches(config=CONFIG) -> list[Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randint(config.vocab_size, (rows, 8), generator=generator) for rows in (2, 1, 3)]


def reference(gpt: GPT, seed: int) -> dict[str, Moments]:
    """By definition, one token after the other."""
    uses: dict[str, list[tuple[Tensor, Tensor]]] = {}
    kinds = {f"{name}.weight": m for name, m in gpt.named_modules() if isinstance(m, (nn.Linear, nn.Embedding))}
    kinds.pop("lm_head.weight", None)
    hooks = [
        m.register_forward_hook(lambda _, x, y, name=name: uses[name].append((x[0], y))) for name, m in kinds.items()
    ]
    sums: dict[str, list[Any]] = {
        name: [0.0, np.zeros(len(m.weight)) if isinstance(m, nn.Embedding) else 0.0, 0] for name, m in kinds.items()
    }
    head: Any
    information: Any
    head, information, chances, tokens = 0.0, np.zeros(gpt.config.vocab_size), 0.0, 0
    cap = gpt.config.logit_softcap
    for number, batch in enumerate(batches(gpt.config)):
        generator = torch.Generator().manual_seed(label_seed(seed, number))
        uses.update({name: [] for name in kinds})
        hidden = gpt.before_head(gpt.hidden(batch)).flatten(0, 1)
        raw = hidden @ gpt.head.T
        logp = (cap * torch.tanh(raw / cap)).log_softmax(-1)
        labels = torch.multinomial(logp.detach().exp(), 1, generator=generator)[:, 0]
        total = -logp[torch.arange(len(labels)), labels].sum()
        for name, seen in uses.items():
            of = sums[name]
            for (x, _), g in zip(
                seen, torch.autograd.grad(total, [y for _, y in seen], retain_graph=True), strict=True
            ):
                if isinstance(kinds[name], nn.Embedding):
                    for row, each in zip(x.flatten().tolist(), g.flatten(0, 1).double().numpy(), strict=True):
                        of[0] = of[0] + np.outer(each, each)
                        of[1][row] += 1
                    continue
                for v in x.detach().flatten(0, 1).double().numpy():
                    of[0], of[2] = of[0] + np.outer(v, v), of[2] + 1
                for each in g.flatten(0, 1).double().numpy():
                    of[1] = of[1] + np.outer(each, each)
        for t, h in enumerate(hidden.detach().double().numpy()):
            head = head + np.outer(h, h)
            p = logp[t].exp().detach().double().numpy()
            chances += p.sum()
            for label, chance in enumerate(p):  # the Fisher information: over every label, by its chance
                slope = torch.autograd.grad(logp[t, label], raw, retain_graph=True)[0][t]
                information += chance * slope.double().numpy() ** 2
        tokens += batch.numel()
    for hook in hooks:
        hook.remove()
    for name, module in kinds.items():
        if isinstance(module, nn.Embedding):
            sums[name][1] = np.maximum(sums[name][1], 1)  # rows that were not visited count as visited once
    found = {n: Moments(s[0] / (s[2] or tokens), s[1] / tokens) for n, s in sums.items()}
    if gpt.lm_head is not None:
        return {**found, "lm_head.weight": Moments(head / tokens, information / tokens)}
    both = head / tokens + chances / information.sum() * found["tok_emb.weight"].inputs
    return {**found, "tok_emb.weight": Moments(both, information / tokens)}


@pytest.mark.parametrize("seed", [0, 3])
@pytest.mark.parametrize("config", [CONFIG, SMALL, replace(SMALL, tied_head=False)])
def test_moments_by_definition(config, seed):
    """Of looped layers, which are used twice, of the hash table and of the tied embedding."""
    gpt = model(config)
    found, expected = calibrate(gpt, batches(config), seed), reference(model(config), seed)
    matrices = {name: p.shape for name, p in parameters(config).items() if p.role != "vector"}
    assert found.keys() == expected.keys() == matrices.keys()
    for name, shape in matrices.items():
        assert moments_of(found, name, (shape[0], shape[1])) is found[name]
        for a, b in ((found[name].inputs, expected[name].inputs), (found[name].outputs, expected[name].outputs)):
            assert a.dtype == np.float32
            assert np.allclose(a, b, rtol=1e-3, atol=1e-5 * np.abs(b).max()), name
        assert np.linalg.eigvalsh(found[name].inputs.astype(np.float64)).min() > -1e-4 * np.trace(found[name].inputs)


def test_outputs_of_wide_layers_are_a_diagonal(monkeypatch):
    full = calibrate(model(), batches())
    monkeypatch.setattr("trainer.fit.calibrate.FULL_OUTPUTS", 16)
    found = calibrate(model(), batches())
    assert {m.outputs.ndim for n, m in full.items() if "emb" not in n} == {2}
    for name, moments in found.items():
        assert moments.outputs.ndim == (2 if len(moments.outputs) <= 16 else 1), name
        assert np.allclose(moments.row_weights, full[name].row_weights, rtol=1e-4, atol=1e-8)


def test_tokens_that_the_text_lacks_keep_their_rows():
    """Of a model with a head of its own, whose embedding is known by its look-ups alone: half of the vocabulary is not
    in the calibration text, but in other text."""
    config = FAMILIES["llama, scaled rotations and a head of its own"]
    network = Transformer(config)
    network.load_state_dict(family_weights(config))
    generator = torch.Generator().manual_seed(7)
    chances = 1 / (1 + torch.arange(float(config.vocab_size)))
    seen, other = (torch.multinomial(chances, 8 * 64, True, generator=generator).view(8, 64) for _ in range(2))
    assert 0.4 < len(seen.unique()) / config.vocab_size < 0.6

    def cost(known: dict[str, Moments] | None) -> float:
        rounded = Transformer(config)
        blob = codec.compress(family_weights(config), config, budget=18_000, calibration=known)
        rounded.load_state_dict(codec.decompress(blob))
        with torch.no_grad():
            return float(divergence(network(other), rounded(other))) / other.numel()

    assert cost(calibrate(network, [seen])) < 0.8 * cost(None)


PROCESS = """
import sys
import torch
from codec.quantization.calibration import save_calibration
from tests.trainer.fit.test_calibrate import CONFIG, batches, model
from trainer.fit.calibrate import calibrate
from trainer.distributed import join

told = []
with join() as world:
    found = calibrate(model(), batches(), 3, told.append, world)
    save_calibration(f"{sys.argv[1]}/{world.rank}.safetensors", found)
assert told == [16, 8, 24]
"""


@pytest.mark.long
def test_two_processes_find_what_one_finds(tmp_path: Path):
    """Each takes its share of the text; all know the result."""
    (tmp_path / "process.py").write_text(PROCESS)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [*launch, str(tmp_path / "process.py"), str(tmp_path)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    first, second = (load_calibration(tmp_path / f"{rank}.safetensors") for rank in range(2))
    alone = calibrate(model(), batches(), 3)
    assert set(first) == set(alone)
    for name, moments in alone.items():
        for kind in ("inputs", "outputs"):
            a, b = getattr(first[name], kind), getattr(moments, kind)
            assert np.array_equal(a, getattr(second[name], kind)), name
            assert np.abs(a - b).max() <= 1e-4 * np.abs(b).max(), name


def test_visits_are_counted_by_pair():
    """Rows that no pair of the text hashes to count as visited once; the row of no pair is visited."""
    visits, text = np.zeros(CONFIG.bigram_buckets), torch.cat(batches())
    for row in text.tolist():
        for before, token in zip([None, *row[:-1]], row, strict=True):
            alone = before is None or token == BOS
            visits[-1 if alone else ((36313 * token) ^ (27191 * before)) % (CONFIG.bigram_buckets - 1)] += 1
    found = calibrate(model(), batches())["bigram.embed.weight"].outputs
    assert visits.min() == 0 < visits[-1]
    assert np.allclose(found * text.numel(), np.maximum(visits, 1))
    found = calibrate(model(), batches())["values.embed.weight"].outputs
    counts = np.bincount(text.flatten(), minlength=CONFIG.vocab_size)
    assert counts.min() == 0
    assert np.allclose(found * text.numel(), np.maximum(counts, 1))


def test_seeds_and_what_is_left_behind():
    told: list[float] = []
    gpt = model()
    first, again = calibrate(gpt, batches(), 0, told.append), calibrate(gpt, batches(), 0)
    other = calibrate(gpt, batches(), 1)
    for name in first:
        assert np.array_equal(first[name].inputs, again[name].inputs)
        assert np.array_equal(first[name].outputs, again[name].outputs)
    assert not np.array_equal(first["blocks.1.attn.c_q.weight"].outputs, other["blocks.1.attn.c_q.weight"].outputs)
    assert np.array_equal(first["blocks.1.attn.c_q.weight"].inputs, other["blocks.1.attn.c_q.weight"].inputs)
    assert told == [16, 8, 24]
    assert all(p.grad is None for p in gpt.parameters())
    assert all(not m._forward_hooks and not m._forward_pre_hooks and not m._backward_hooks for m in gpt.modules())
    assert all(torch.equal(t, random_weights(CONFIG)[name]) for name, t in gpt.state_dict().items())


def test_float_model():
    checkpoint = Checkpoint(random_weights(CONFIG), CONFIG, None)
    found = float_model(checkpoint, "cpu")
    assert not found.training
    assert torch.equal(found(batches()[0]), model()(batches()[0]))
    with pytest.raises(FormatError, match="no config"):
        float_model(Checkpoint({}, None, None), "cpu")


def test_text_is_documents_behind_bos(tmp_path: Path):
    tokenizer = sp1024()
    checkpoint = Checkpoint({}, replace(PLAIN, window=16), tokenizer)
    (tmp_path / "a.txt").write_bytes(b"Some text, and a little more of it. " * 40)
    expected = [BOS, *tokenizer.encode((tmp_path / "a.txt").read_bytes()).tolist()]
    found = text_batches(checkpoint, tmp_path / "a.txt", 10**6)
    stream = torch.cat(found).flatten().tolist()
    assert stream == expected[: len(stream)]
    assert 0 <= len(expected) - len(stream) < 16
    assert sum(b.numel() for b in text_batches(checkpoint, tmp_path / "a.txt", 100)) == 96
    assert sum(b.numel() for b in text_batches(checkpoint, tmp_path / "a.txt", 1)) == 16
    sample = text_batches(checkpoint, None, 10_000)
    assert sum(b.numel() for b in sample) == 10_000
    assert all(b.shape[1] == 16 and b.numel() <= BATCH_TOKENS and b.dtype == torch.int64 for b in sample)
    assert torch.cat(sample)[0, 0] == BOS
    (tmp_path / "short.txt").write_bytes(b"short")
    with pytest.raises(FormatError, match="expected at least the window of 16"):
        text_batches(checkpoint, tmp_path / "short.txt", 100)
    for lacking in (Checkpoint({}, None, tokenizer), Checkpoint({}, PLAIN, None)):
        with pytest.raises(FormatError, match="no config or no tokenizer"):
            text_batches(lacking, None, 100)
