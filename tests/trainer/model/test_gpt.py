"""The float model: against a slow reference in loops over positions, and what it must never do (see the future)."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch._dynamo.testing import CompileCounterWithBackend

from codec.errors import MismatchError
from codec.model.bigram import bigram_rows
from codec.model.config import ModelConfig
from codec.model.parameters import parameters
from codec.model.tokenizer import BOS
from codec.numerics.random_map import signs
from trainer.kernels.fusion import Fusion
from trainer.model.attention import SlidingWindow
from trainer.model.gpt import GPT
from trainer.model.layers import rope_tables

TINY = {"vocab_size": 29, "window": 12, "num_layers": 2, "model_dim": 16, "num_heads": 4, "num_kv_heads": 2}

CONFIGS = {
    "baseline": ModelConfig(**TINY),
    "one layer": ModelConfig(**TINY | {"num_layers": 1}),
    "leaky": ModelConfig(**TINY, activation="leaky_relu2", mlp_mult=3),
    "partial rope": ModelConfig(**TINY, rope_dims=2, rope_base=100.0),
    "yarn": ModelConfig(**TINY, yarn=3.0),
    "gated skips": ModelConfig(**TINY, skips="gated"),
    "xsa last": ModelConfig(**TINY, xsa_layers=1),
    "xsa all": ModelConfig(**TINY, xsa_layers=2),
    "norm scale": ModelConfig(**TINY, ln_scale=True),
    "low softcap": ModelConfig(**TINY, logit_softcap=2.0),
    "bigram": ModelConfig(**TINY, bigram_buckets=7, bigram_dim=6),
    "parallel": ModelConfig(**TINY | {"num_layers": 3}, parallel_from=1),
    "factorised embedding": ModelConfig(**TINY, embedding_dim=5, smear_gate=True),
    "untied head": ModelConfig(**TINY, tied_head=False),
    "random maps": ModelConfig(**TINY, random_rank=3),
    "swiglu": ModelConfig(**TINY, activation="swiglu", mlp_mult=3),
    "value embeddings": ModelConfig(**TINY, value_dims=5, value_layers=1),
    "attention gate": ModelConfig(**TINY, attention_gate=True),
    "smear": ModelConfig(**TINY, smear_gate=True),
    "loop": ModelConfig(**TINY | {"num_layers": 4}, loop_start=1, loop_end=3, loop_count=3),
    "everything": ModelConfig(
        **TINY | {"num_layers": 3},
        activation="leaky_relu2",
        rope_dims=2,
        yarn=2.0,
        skips="gated",
        xsa_layers=2,
        ln_scale=True,
        loop_start=1,
        loop_end=2,
        loop_count=2,
        bigram_buckets=11,
        bigram_dim=6,
        value_dims=6,
        parallel_from=2,
        attention_gate=True,
        smear_gate=True,
    ),
}

Array = NDArray[np.float64]


def random_model(config: ModelConfig, seed: int = 0) -> GPT:
    """A model none of whose tensors is at a special value."""
    torch.manual_seed(seed)
    model = GPT(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def some_tokens(config: ModelConfig, rows: int, seed: int = 1) -> torch.Tensor:
    tokens = torch.randint(0, config.vocab_size, (rows, config.window), generator=torch.Generator().manual_seed(seed))
    tokens[0, 4] = BOS
    return tokens


def norm(x: Array) -> Array:
    return x / math.sqrt(np.mean(x * x) + 2**-23)


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def rotated(x: Array, position: int, config: ModelConfig) -> Array:
    """RoPE of one head's vector at one position, one pair of dimensions after another."""
    out, dims = x.copy(), config.rotary_dims
    for i in range(dims // 2):
        frequency = config.rope_base ** (-2 * i / dims)
        turns = config.window / config.yarn * frequency / (2 * math.pi)
        kept = min(max((turns - 1) / 31, 0), 1)
        angle = position * frequency * (kept + (1 - kept) / config.yarn)
        a, b = x[i], x[i + dims // 2]
        out[i] = a * math.cos(angle) + b * math.sin(angle)
        out[i + dims // 2] = b * math.cos(angle) - a * math.sin(angle)
    return out


def reference_attention(
    n: list[Array], w: dict[str, Array], added: list[Array], config: ModelConfig, xsa: bool
) -> list[Array]:
    d, group = config.head_dim, config.num_heads // config.num_kv_heads
    out = []
    for t in range(len(n)):
        heads = []
        for head in range(config.num_heads):
            kv = slice(head // group * d, head // group * d + d)
            q = rotated(norm(w["attn.c_q.weight"][head * d : head * d + d] @ n[t]), t, config) * w["attn.q_gain"][head]
            seen = range(max(0, t + 1 - config.window), t + 1)
            keys = [rotated(norm(w["attn.c_k.weight"][kv] @ n[s]), s, config) for s in seen]
            values = [w["attn.c_v.weight"][kv] @ n[s] for s in seen]
            if "attn.value_scale" in w:
                values = [v + w["attn.value_scale"] * added[s][kv] for s, v in zip(seen, values, strict=True)]
            scores = np.array([q @ key for key in keys]) / math.sqrt(d)
            p = np.exp(scores - scores.max())
            y = sum(weight * value for weight, value in zip(p / p.sum(), values, strict=True))
            if xsa:
                own = values[-1]
                y = y - (y @ own) / (own @ own) * own
            if config.attention_gate:
                y = y * sigmoid(w["attn.gate"][head] @ n[t][:12])
            heads.append(y)
        out.append(w["attn.proj.weight"] @ np.concatenate(heads))
    return out


def reference(weights: dict[str, Array], tokens: list[int], config: ModelConfig) -> Array:
    """Logits [T, V] of one row: float64, a loop for every dimension that allows one."""
    embedding = weights["tok_emb.weight"]
    if config.embedding_dim:
        embedding = embedding @ weights["embed_proj.weight"].T
    x = []
    for t, token in enumerate(tokens):
        e = embedding[token]
        if config.smear_gate and t > 0 and token != BOS:
            gate = sigmoid(norm(e)[:12] @ weights["smear.gate"])
            e = e + weights["smear.scale"] * gate * embedding[tokens[t - 1]]
        if config.bigram_buckets:
            row = config.bigram_buckets - 1
            if t > 0 and token != BOS:
                row = ((36313 * token) ^ (27191 * tokens[t - 1])) % (config.bigram_buckets - 1)
            h = weights["bigram.embed.weight"][row]
            e = e + weights["bigram.scale"] * (weights["bigram.proj.weight"] @ h)
        x.append(norm(e))
    x0, kept, added = x, [], []
    if config.value_dims:
        added = [weights["values.proj.weight"] @ weights["values.embed.weight"][token] for token in tokens]
    for execution, layer in enumerate(config.schedule):
        second = execution - config.encoder_length
        if 0 <= second < config.encoder_length:
            for t, other in enumerate(kept.pop()):
                s = weights["skip_weights"][second] * other
                if config.skips == "add":
                    x[t] = x[t] + s
                else:
                    x[t] = s + sigmoid(weights["skip_gates"][second]) * (x[t] - s)
        prefix = f"blocks.{layer}."
        w = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
        for number, kind in enumerate(("mlp.fc", "mlp.proj") if config.random_rank else ()):
            a, b, s = (w[f"{kind}.{part}"] for part in ("inner.weight", "outer.weight", "scale"))
            w[f"{kind}.weight"] = s[:, None] * signs(2 * layer + number, len(b), a.shape[1]) + b @ a
        scale = 1 / math.sqrt(layer + 1) if config.ln_scale else 1.0
        x = [w["resid_mix"][0] * x[t] + w["resid_mix"][1] * x0[t] for t in range(len(tokens))]
        xsa = layer >= config.num_layers - config.xsa_layers
        before = x
        attended = reference_attention([norm(v) * scale for v in x], w, added, config, xsa)
        x = [x[t] + w["attn_scale"] * attended[t] for t in range(len(tokens))]
        for t in range(len(tokens)):
            seen = before[t] if 0 < config.parallel_from <= layer else x[t]
            h = w["mlp.fc.weight"] @ (norm(seen) * scale)
            if config.activation == "swiglu":
                gate, h = np.split(h, 2)
                h = gate * sigmoid(gate) * h
            else:
                h = np.where(h > 0, h, 0.5 * h if config.activation == "leaky_relu2" else 0.0) ** 2
            x[t] = x[t] + w["mlp_scale"] * (w["mlp.proj.weight"] @ h)
        if execution < config.encoder_length:
            kept.append(list(x))
    cap = config.logit_softcap
    head = embedding if config.tied_head else weights["lm_head.weight"]
    return np.array([cap * np.tanh(head @ norm(v) / cap) for v in x])


@pytest.mark.parametrize("name", CONFIGS)
def test_state_dict_is_the_parameters_of_the_config(name: str) -> None:
    config = CONFIGS[name]
    state = GPT(config).state_dict()
    assert {key: tuple(tensor.shape) for key, tensor in state.items()} == {
        key: parameter.shape for key, parameter in parameters(config).items()
    }
    assert {tensor.dtype for tensor in state.values()} == {torch.float32}


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_equal_a_reference_in_loops(name: str) -> None:
    config = CONFIGS[name]
    model = random_model(config).double()
    model.dtype = torch.float64
    tokens = some_tokens(config, rows=1)
    weights = {key: tensor.detach().numpy().astype(np.float64) for key, tensor in model.state_dict().items()}
    logits = model(tokens)[0].detach().numpy()
    # norms and rotations are float32 even in a float64 model
    np.testing.assert_allclose(logits, reference(weights, tokens[0].tolist(), config), atol=2e-4)


@pytest.mark.parametrize("name", ["baseline", "everything", "value embeddings"])
@pytest.mark.parametrize("chunk", [1, 5, 12, 40])
def test_chunks_of_a_band_equal_a_reference_in_loops(name: str, chunk: int) -> None:
    """Two documents of three windows; the shorter ends within a chunk, whose rest does not matter."""
    config = CONFIGS[name]
    model = random_model(config).double()
    model.dtype = torch.float64
    tokens = torch.cat([some_tokens(config, 2, seed) for seed in range(3)], 1)
    weights = {key: tensor.detach().numpy().astype(np.float64) for key, tensor in model.state_dict().items()}
    sliding, parts = SlidingWindow(config.window), []
    for begin in range(0, 36, chunk):
        rows = tokens[: 2 if begin < 20 else 1, begin : begin + chunk]
        logits = model.logits(model.hidden(rows, sliding)).detach().numpy()
        parts.append(logits if len(rows) == 2 else np.concatenate((logits, np.zeros_like(logits))))
    for row, length, found in zip(tokens.tolist(), (36, 20), np.concatenate(parts, 1), strict=True):
        expected = reference(weights, row[:length], config)
        np.testing.assert_allclose(found[:length], expected, atol=2e-4)


@pytest.mark.parametrize("name", ["everything", "bigram", "loop"])
def test_the_future_does_not_reach_earlier_logits(name: str) -> None:
    model = random_model(CONFIGS[name])
    tokens = some_tokens(model.config, rows=3)
    before = model(tokens)
    for t in (1, 5, model.config.window - 1):
        other = tokens.clone()
        other[:, t:] = (other[:, t:] + 3) % model.config.vocab_size
        after = model(other)
        assert torch.equal(before[:, :t], after[:, :t])
        assert not torch.allclose(before[:, t], after[:, t])


def test_looping_runs_the_layers_of_the_loop_again() -> None:
    plain = ModelConfig(**TINY | {"num_layers": 3})
    looped = ModelConfig(**TINY | {"num_layers": 3}, loop_start=1, loop_end=2, loop_count=3)
    tokens = some_tokens(plain, rows=2)
    assert looped.schedule == (0, 1, 1, 1, 2)
    model, other = random_model(plain), random_model(looped)
    other.load_state_dict(model.state_dict() | {"skip_weights": other.state_dict()["skip_weights"]})
    assert not torch.allclose(model(tokens), other(tokens))


def test_nothing_is_smeared_into_the_next_document() -> None:
    model = random_model(CONFIGS["smear"])
    assert model.smear is not None
    tokens = torch.tensor([[3, 4, BOS, 5, 6], [7, 8, BOS, 5, 6]])
    smeared = model.smear(model.tok_emb(tokens), tokens)
    assert torch.equal(smeared[0, 2:], smeared[1, 2:])
    assert torch.equal(smeared[:, 2], model.tok_emb(tokens)[:, 2])
    assert not torch.equal(smeared[:, 3], model.tok_emb(tokens)[:, 3])


def test_loops_can_be_switched_off() -> None:
    """The model then is the one without loops, whose skips are the outermost ones of the looped model."""
    shape = TINY | {"num_layers": 7, "skips": "gated"}
    looped, plain = ModelConfig(**shape, loop_start=2, loop_end=4, loop_count=3), ModelConfig(**shape)
    model, other = random_model(looped), GPT(plain)
    state = model.state_dict()
    spared = looped.encoder_length - plain.encoder_length
    assert spared == 2
    other.load_state_dict({n: t[spared:] if n in ("skip_weights", "skip_gates") else t for n, t in state.items()})
    tokens = some_tokens(looped, rows=2)
    whole = model(tokens)
    model.loop(False)
    assert torch.equal(model(tokens), other(tokens))
    model.loop(True)
    assert torch.equal(model(tokens), whole)
    assert not torch.allclose(whole, other(tokens))


def test_each_schedule_is_compiled_once() -> None:
    model, counter = random_model(CONFIGS["loop"]), CompileCounterWithBackend("eager")
    tokens = some_tokens(model.config, rows=2)
    compiled = torch.compile(model.loss, backend=counter, fullgraph=True, dynamic=False)
    losses = []
    for on in (False, True, False, True):
        model.loop(on)
        losses.append(compiled(tokens, tokens).item())
        assert losses[-1] == pytest.approx(model.loss(tokens, tokens).item(), rel=1e-5)
    assert counter.frame_count == 2
    assert losses[0] == losses[2] != losses[1] == losses[3]


def test_document_masks_are_documents_on_their_own() -> None:
    config = replace(CONFIGS["everything"], window=24)
    model = random_model(config)
    model.document_masks = True
    row = some_tokens(config, rows=1)[0]
    row[[3, 4, 15]] = BOS
    whole = model(torch.stack((row, row.roll(5))))
    for start, end in ((0, 3), (3, 4), (4, 15), (15, 24)):
        torch.testing.assert_close(whole[0, start:end], model(row[None, start:end])[0], atol=2e-5, rtol=1e-4)
    model.document_masks = False
    unmasked = model(row[None])[0]
    torch.testing.assert_close(unmasked[:3], whole[0, :3])
    assert not torch.allclose(unmasked[5:15], whole[0, 5:15], atol=1e-3)


def test_a_new_model_knows_nothing() -> None:
    config = CONFIGS["everything"]
    tokens = some_tokens(config, rows=2)
    loss = GPT(config).loss(tokens, tokens.roll(-1, 1))
    assert loss.item() == pytest.approx(math.log(config.vocab_size), abs=0.1)


def test_the_loss_is_cross_entropy_of_the_logits() -> None:
    model = random_model(CONFIGS["baseline"])
    tokens = some_tokens(model.config, rows=2)
    targets = tokens.roll(-1, 1)
    expected = -model(tokens).log_softmax(-1).gather(-1, targets[..., None]).squeeze(-1)
    torch.testing.assert_close(model.loss(tokens, targets, reduction="none"), expected)
    torch.testing.assert_close(model.loss(tokens, targets, reduction="sum"), expected.sum())
    torch.testing.assert_close(model.loss(tokens, targets), expected.mean())


def test_logits_stay_under_the_softcap() -> None:
    model = random_model(CONFIGS["low softcap"])
    with torch.no_grad():
        model.tok_emb.weight.mul_(50)
    assert model(some_tokens(model.config, rows=1)).abs().max() <= 2.0


def test_bfloat16_is_close_and_parameters_stay_float32() -> None:
    config = CONFIGS["everything"]
    model = random_model(config)
    half = GPT(config, dtype=torch.bfloat16)
    half.load_state_dict(model.state_dict())
    tokens = some_tokens(config, rows=2)
    logits = half(tokens)
    assert logits.dtype == torch.float32
    assert (logits - model(tokens)).abs().mean() < 0.1
    half.loss(tokens, tokens).backward()
    assert {p.grad.dtype for p in half.parameters() if p.grad is not None} == {torch.float32}


@pytest.mark.parametrize("name", ["baseline", pytest.param("everything", marks=pytest.mark.long)])
def test_the_loss_is_one_graph_for_the_compiler(name: str) -> None:
    model = GPT(CONFIGS[name], dtype=torch.bfloat16, fuse=Fusion(joint=True))
    model.load_state_dict(random_model(CONFIGS[name]).state_dict())
    tokens = some_tokens(model.config, rows=2)
    compiled = torch.compile(model.loss, backend="aot_eager", fullgraph=True, dynamic=False)
    found = compiled(tokens, tokens)
    found.backward()
    torch.testing.assert_close(found, model.loss(tokens, tokens))
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("name", ["baseline", "everything", "low softcap"])
def test_fused_products_are_the_same_function(name: str) -> None:
    config = CONFIGS[name]
    plain, fused = random_model(config), GPT(config, fuse=Fusion(joint=True))
    fused.load_state_dict(plain.state_dict())
    tokens = some_tokens(config, rows=2)
    losses = [model.loss(tokens, tokens.roll(-1, 1)) for model in (plain, fused)]
    torch.testing.assert_close(losses[0], losses[1])
    for loss in losses:
        loss.backward()
    for (key, a), b in zip(plain.named_parameters(), fused.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-6, msg=lambda text, key=key: f"{key}: {text}")


def test_every_parameter_gets_a_gradient() -> None:
    model = random_model(CONFIGS["everything"])
    tokens = some_tokens(model.config, rows=2)
    model.loss(tokens, tokens.roll(-1, 1)).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_rows_longer_than_the_window_are_refused() -> None:
    model = GPT(CONFIGS["baseline"])
    with pytest.raises(MismatchError, match="13 tokens"):
        model(torch.zeros(1, 13, dtype=torch.int64))


def test_rope_tables_begin_with_no_rotation() -> None:
    cos, sin = rope_tables(CONFIGS["partial rope"], 5)
    assert cos.shape == sin.shape == (5, 1)
    assert cos[0].item() == 1 and sin[0].item() == 0
    assert cos[3].item() == pytest.approx(math.cos(3))


def test_bigram_rows_equal_the_formula() -> None:
    tokens = torch.tensor([[5, 6, BOS, 7, 16383]])
    rows = bigram_rows(tokens, 100)
    expected = [99, ((36313 * 6) ^ (27191 * 5)) % 99, 99, ((36313 * 7) ^ (27191 * BOS)) % 99]
    assert rows[0].tolist() == [*expected, ((36313 * 16383) ^ (27191 * 7)) % 99]


def test_bigram_rows_of_a_part_know_the_token_before_it() -> None:
    tokens = torch.randint(0, 500, (3, 10))
    tokens[1, 4] = BOS
    whole = bigram_rows(tokens, 64)
    for cut in (1, 4, 5, 9):
        assert torch.equal(whole[:, cut:], bigram_rows(tokens[:, cut:], 64, tokens[:, cut - 1 : cut]))
