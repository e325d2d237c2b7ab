"""codec.exact.model: one set of integers, however they are computed, and close to the float model.

The reference here computes one sequence with int64 matrix products, one head at a time, roots and exponents from
Python's integers. It shares the tables (`tests/codec/numerics/test_tables.py`) and the order of the element-wise steps
with the module, and nothing else.
"""

import hashlib
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import codec
from codec.entropy import frequencies
from codec.errors import FormatError
from codec.exact.model import ExactLinear, ExactModel
from codec.exact.network import Cache
from codec.exact.weights import Weights
from codec.model.config import ModelConfig
from codec.model.parameters import parameters
from codec.numerics import random_map, tables
from codec.numerics.rotary import rotations
from codec.numerics.widths import FEW_BITS
from codec.pack.reader import Pack
from codec.quantization.quantized import Quantized
from tests.codec.numerics.test_fixed_point import reference_rsqrt
from tests.support.helpers import EVERY_OPTION, PLAIN, RARE_OPTIONS, tiny_pack
from trainer.data.sample import sp1024, val_documents
from trainer.model.gpt import GPT

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

CONFIGS = {
    "every option": EVERY_OPTION,
    "rare options": RARE_OPTIONS,
    "plain": PLAIN,
    "gates": replace(PLAIN, smear_gate=True, attention_gate=True, parallel_from=1, ln_scale=True, tied_head=False),
    "values": replace(
        PLAIN, value_dims=6, value_layers=1, xsa_layers=2, random_rank=4, loop_start=1, loop_end=2, loop_count=2
    ),
    "swiglu": replace(
        PLAIN, activation="swiglu", mlp_mult=3, embedding_dim=10, bigram_buckets=9, bigram_dim=6, smear_gate=True
    ),
    "one layer": replace(PLAIN, num_layers=1),
    "looped to the end": replace(PLAIN, loop_start=1, loop_end=2, loop_count=3, rope_dims=2, xsa_layers=1),
    "odd shapes": replace(EVERY_OPTION, model_dim=30, num_heads=5, num_kv_heads=1, rope_dims=0, mlp_mult=3),
}


def reciprocal_sqrt(m: Floats) -> Floats:
    return np.array([float(reference_rsqrt(v)) for v in m.ravel().tolist()]).reshape(m.shape)


def snap(x: Floats) -> tuple[Integers, Floats]:
    _, exponent = np.frexp(np.abs(x).max(-1, keepdims=True))
    exponent = np.clip(exponent, -64, 960)
    return np.rint(np.ldexp(x, 14 - exponent)).astype(np.int64), np.ldexp(1.0, exponent - 14)


def snap_fixed(x: Floats, fraction: int) -> Integers:
    return np.clip(np.rint(np.ldexp(x, fraction)), -(1 << 14), 1 << 14).astype(np.int64)


def norm(x: Floats, scale: float = 1.0) -> tuple[Integers, Floats]:
    integers, step = snap(x)
    squares = (integers * integers).sum(-1, keepdims=True).astype(np.float64)
    return integers, step * reciprocal_sqrt(squares * step * step * (1.0 / x.shape[-1]) + 2.0**-23) * scale


def sigmoid(x: Floats) -> Floats:
    table = tables.sigmoid_table()
    found = table[np.minimum(np.rint(np.abs(x) * 4096), len(table) - 1).astype(np.int64)]
    return np.where(x < 0, 65536 - found, found) / 65536


def longest(weights: NDArray[np.float32]) -> Fraction:
    """The largest squared length of a row."""
    return Fraction(max(math.fsum(float(w) ** 2 for w in row) for row in weights))


class Reference:
    """Levels int64 [T, V] of one sequence under a pack."""

    def __init__(self, pack: Pack):
        assert pack.config is not None
        self.c, self.matrices = pack.config, pack.matrices
        self.vectors = {name: vector.astype(np.float64) for name, vector in pack.vectors.items()}

    def linear(self, name: str, integers: Integers, step: Floats) -> Floats:
        weights = self.matrices[name]
        return (integers @ weights.symbols.astype(np.int64).T) * weights.rows.astype(np.float64) * step

    def embed(self, tokens: list[int]) -> Floats:
        embedding = self.matrices["tok_emb.weight"]
        x = embedding.symbols[tokens] * embedding.rows[tokens].astype(np.float64)[:, None]
        if self.c.embedding_dim:
            x = self.linear("embed_proj.weight", *snap(x))
        if self.c.smear_gate:
            before, x = x, x.copy()
            gates = self.gates(self.vectors["smear.gate"][None], *norm(before))[:, 0]
            for t in range(1, len(tokens)):
                if tokens[t] != 1:
                    x[t] = before[t] + (gates[t] * self.vectors["smear.scale"]) * before[t - 1]
        if not self.c.bigram_buckets:
            return x
        table, last = self.matrices["bigram.embed.weight"], self.c.bigram_buckets - 1
        rows = [last]
        for before, token in pairwise(tokens):
            rows.append(last if token == 1 else ((36313 * token) ^ (27191 * before)) % last)
        hashed = table.symbols[rows] * table.rows[rows].astype(np.float64)[:, None]
        return x + self.linear("bigram.proj.weight", *snap(hashed)) * self.vectors["bigram.scale"]

    def gates(self, vectors: Floats, integers: Integers, step: Floats) -> Floats:
        weights, steps = snap(vectors)
        z = (integers[:, :12] @ weights.T) * steps[:, 0] * step
        return sigmoid(z)

    def heads(self, x: Floats, count: int) -> Floats:
        return x.reshape(len(x), count, -1).transpose(1, 0, 2)

    def rotate(self, x: Floats) -> Integers:
        """Queries or keys [heads, T, d]."""
        integers, step = norm(x)
        x, half = integers * step, self.c.rotary_dims // 2
        turns = torch.from_numpy(tables.rope_turns(self.c.rope_base, 2 * half, self.c.window, self.c.yarn))
        cos, sin = (part.numpy() for part in rotations(turns, torch.arange(x.shape[1])))
        a, b = x[..., :half], x[..., half : 2 * half]
        turned = np.concatenate((a * cos + b * sin, b * cos - a * sin, x[..., 2 * half :]), -1)
        return snap_fixed(turned, self.query_fraction)

    @property
    def query_fraction(self) -> int:
        """14 bits and a sign for values to sqrt(head_dim)."""
        bits = 0
        while 4**bits < self.c.head_dim:
            bits += 1
        return 14 - bits

    def value_fraction(self, block: str, kv_head: int, norm_scale: float) -> int:
        """Of the least power of two above a head's largest value, by Cauchy and Schwarz, from 2^-30 to 2^30."""
        c, size = self.c, self.c.head_dim
        head = slice(kv_head * size, (kv_head + 1) * size)
        bound = longest(self.matrices[block + "attn.c_v.weight"].dequantize()[head])
        bound *= Fraction(c.model_dim * norm_scale * norm_scale)
        if block + "attn.value_scale" in self.vectors:
            added = longest(self.matrices["values.proj.weight"].dequantize()[head])
            added *= longest(self.matrices["values.embed.weight"].dequantize())
            bound = 2 * (bound + added * Fraction(float(self.vectors[block + "attn.value_scale"][0])) ** 2)
        bits = -30
        while bits < 30 and Fraction(4) ** bits <= bound:
            bits += 1
        return 14 - bits

    def value_embeddings(self, tokens: list[int]) -> Floats:
        table = self.matrices["values.embed.weight"]
        rows = table.symbols[tokens] * table.rows[tokens].astype(np.float64)[:, None]
        return self.linear("values.proj.weight", *snap(rows))

    def attention(self, layer: int, x: Floats, norm_scale: float, tokens: list[int]) -> Floats:
        c, block = self.c, f"blocks.{layer}."
        normed, step = norm(x, norm_scale)
        query = self.rotate(self.heads(self.linear(block + "attn.c_q.weight", normed, step), c.num_heads))
        key = self.rotate(self.heads(self.linear(block + "attn.c_k.weight", normed, step), c.num_kv_heads))
        value = self.linear(block + "attn.c_v.weight", normed, step)
        if block + "attn.value_scale" in self.vectors:
            value = value + self.vectors[block + "attn.value_scale"] * self.value_embeddings(tokens)
        values = self.heads(value, c.num_kv_heads)
        exp2, out = tables.exp2_table(20), []
        gates = self.gates(self.vectors[block + "attn.gate"], normed, step) if c.attention_gate else np.ones((0, 0))
        for head in range(c.num_heads):
            kv = head // (c.num_heads // c.num_kv_heads)
            fraction = self.value_fraction(block, kv, norm_scale)
            value = snap_fixed(values[kv], fraction)
            unit = 4096 * 1.4426950408889634 / math.sqrt(c.head_dim) * 2.0 ** (-2 * self.query_fraction)
            scale = self.vectors[block + "attn.q_gain"][head] * unit
            rows = []
            for t in range(len(x)):
                seen = slice(max(0, t + 1 - c.window), t + 1)
                levels = np.rint((key[kv, seen] @ query[head, t]) * scale)
                weights = exp2[np.minimum(levels.max() - levels, len(exp2) - 1).astype(np.int64)]
                mixed = (weights @ value[seen]) / weights.sum()
                if layer >= c.num_layers - c.xsa_layers:
                    own = value[t]
                    dot = np.rint(mixed).astype(np.int64) @ own
                    mixed = mixed - (dot / max(int(own @ own), 1)) * own
                mixed = np.ldexp(mixed, -fraction)
                rows.append(mixed * gates[t, head] if c.attention_gate else mixed)
            out.append(np.array(rows))
        return self.linear(block + "attn.proj.weight", *snap(np.concatenate(out, 1)))

    def mlp(self, layer: int, x: Floats, norm_scale: float) -> Floats:
        block = f"blocks.{layer}.mlp."

        def product(kind: str, integers: Integers, step: Floats) -> Floats:
            if not self.c.random_rank:
                return self.linear(f"{block}{kind}.weight", integers, step)
            scale, width = self.vectors[f"{block}{kind}.scale"], integers.shape[1]
            map_ = random_map.signs(2 * layer + (kind == "proj"), len(scale), width).astype(np.int64)
            low = self.linear(f"{block}{kind}.inner.weight", integers, step)
            return (integers @ map_.T) * scale * step + self.linear(f"{block}{kind}.outer.weight", *snap(low))

        hidden = product("fc", *norm(x, norm_scale))
        if self.c.activation == "swiglu":
            gate, hidden = np.split(hidden, 2, axis=1)
            return product("proj", *snap(gate * sigmoid(gate) * hidden))
        integers, step = snap(np.where(hidden > 0, hidden, hidden * (0.5 if "leaky" in self.c.activation else 0)))
        return product("proj", integers * integers, step * step)

    def __call__(self, tokens: list[int]) -> Integers:
        c, vectors = self.c, self.vectors
        integers, step = norm(self.embed(tokens))
        x = first = integers * step
        skips: list[Floats] = []
        for n, layer in enumerate(c.schedule):
            block = f"blocks.{layer}."
            if n >= c.encoder_length and skips:
                skip = vectors["skip_weights"][n - c.encoder_length] * skips.pop()
                if c.skips == "gated":
                    x = skip + tables.sigmoid(vectors["skip_gates"])[n - c.encoder_length] * (x - skip)
                else:
                    x = x + skip
            scale = round(65536 / math.sqrt(layer + 1)) / 65536 if c.ln_scale else 1.0
            x = x * vectors[block + "resid_mix"][0] + first * vectors[block + "resid_mix"][1]
            before = x
            x = x + vectors[block + "attn_scale"] * self.attention(layer, x, scale, tokens)
            x = x + vectors[block + "mlp_scale"] * self.mlp(layer, before if 0 < c.parallel_from <= layer else x, scale)
            if n < c.encoder_length:
                skips.append(x)
        if c.embedding_dim:
            integers, step = norm(x)
            proj = self.matrices["embed_proj.weight"]
            integers, finer = snap(integers * proj.rows.astype(np.float64))
            logits = self.linear("tok_emb.weight", *snap((integers @ proj.symbols.astype(np.int64)) * (step * finer)))
        else:
            logits = self.linear("tok_emb.weight" if c.tied_head else "lm_head.weight", *norm(x))
        table = tables.softcap_table(c.logit_softcap)
        capped = table[np.minimum(np.rint(np.abs(logits) * 1024), len(table) - 1).astype(np.int64)]
        return np.where(logits < 0, -capped, capped)


def some_tokens(batch: int, length: int, vocabulary: int = 1024, seed: int = 0) -> torch.Tensor:
    """int64 [batch, length]: BOS first, now and then BOS or a run of one token within."""
    tokens = torch.randint(2, vocabulary, (batch, length), generator=torch.Generator().manual_seed(seed))
    tokens[:, 0] = 1
    tokens[::3, length // 2] = 1
    tokens[1::3, length // 3 : length // 2] = 7
    return tokens


def forward(model: ExactModel, tokens: torch.Tensor) -> torch.Tensor:
    return model.levels(*model.forward(tokens.to(model.device))).cpu()


def stepped(model: ExactModel, tokens: torch.Tensor, cache: Cache | None = None) -> torch.Tensor:
    """Levels by cached steps."""
    tokens = tokens.to(model.device)
    batch, length = tokens.shape
    cache, levels = cache or model.new_cache(batch, model.config.window), []
    for t in range(length):
        position = torch.full((batch,), t, device=model.device)
        levels.append(model.levels(*model.step(tokens[:, t], tokens[:, max(0, t - 1)], position, cache)))
    return torch.cat(levels, 1).cpu()


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_against_int64_matrix_products(config):
    pack = tiny_pack(config)
    model, reference = pack.exact(), Reference(pack)
    for tokens in some_tokens(3, config.window):
        expected = reference(tokens.tolist())
        assert expected.dtype == np.int64
        assert len(np.unique(expected[-1])) > 100  # not a degenerate model
        assert np.array_equal(forward(model, tokens[None])[0].numpy(), expected)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_cached_steps_are_the_teacher_forced_pass(config):
    model = tiny_pack(config).exact()
    tokens = some_tokens(4, min(config.window, 40))
    expected = forward(model, tokens)
    assert torch.equal(stepped(model, tokens), expected)


@pytest.mark.parametrize("count", [1, 2])
def test_batch_sizes_and_threads(count):
    model = tiny_pack(EVERY_OPTION).exact()
    tokens = some_tokens(8, 32)
    expected = torch.cat([forward(model, row[None]) for row in tokens])
    with threads(count):
        for size in (1, 3, 8):
            assert torch.equal(torch.cat([forward(model, part) for part in tokens.split(size)]), expected)
            assert torch.equal(stepped(model, tokens[:size]), expected[:size])


def test_right_padding_changes_nothing():
    model = tiny_pack(EVERY_OPTION).exact()
    tokens = some_tokens(4, 32)
    expected = forward(model, tokens)
    for length in (1, 2, 17, 31):
        assert torch.equal(forward(model, tokens[:, :length]), expected[:, :length])
        padded = tokens.clone()
        padded[:, length:] = some_tokens(4, 32, seed=5)[:, length:]
        assert torch.equal(forward(model, padded)[:, :length], expected[:, :length])


def test_a_slot_that_was_used_before_forgets():
    """The decoder reuses slots: what a longer sequence left in the cache must not be seen."""
    model = tiny_pack(EVERY_OPTION).exact()
    tokens, other = some_tokens(3, 32), some_tokens(3, 32, seed=9)
    cache = model.new_cache(3, model.config.window)
    stepped(model, other, cache)
    assert torch.equal(stepped(model, tokens, cache), forward(model, tokens))


def test_chunks_of_attention_rows(monkeypatch):
    model = tiny_pack(EVERY_OPTION).exact()
    tokens = some_tokens(2, 32)
    expected = forward(model, tokens)
    for chunk in (1, 7, 31):
        monkeypatch.setattr("codec.exact.attention._QUERY_CHUNK", chunk)
        assert torch.equal(forward(model, tokens), expected)


LONG = replace(PLAIN, window=4096, num_layers=1, model_dim=16, num_heads=2, num_kv_heads=1, yarn=4.0)


def test_a_window_of_4096():
    """A step sees the keys up to its position; those behind it are of the pass that it is compared with."""
    model, tokens = tiny_pack(LONG).exact(), some_tokens(1, 4096)
    past = model.new_past(1, 4097)  # which keeps all but one
    expected = model.forward(tokens, past)
    cache = Cache(past.keys, past.values)
    for t in (127, 2048, 4095):
        found = model.step(tokens[:, t], tokens[:, t - 1], torch.tensor([t]), cache)
        assert all(torch.equal(mine, whole[:, t : t + 1]) for mine, whole in zip(found, expected, strict=True))


def test_nothing_is_smeared_into_the_next_document():
    model = tiny_pack(CONFIGS["gates"]).exact()
    text = torch.tensor([[1, 5, 6, 1, 5, 6, 7]])
    positions = torch.arange(7)[None]
    x = model.embed(text, None, positions)
    assert torch.equal(x[:, 3:6], x[:, :3])
    assert torch.equal(model.embed(text[:, 3:], None, positions[:, :4]), x[:, 3:])
    assert not torch.equal(model.embed(text[:, 4:], None, positions[:, :3])[:, 0], x[:, 4])
    for t in range(7):
        assert torch.equal(
            model.embed(text[:, t : t + 1], text[:, t - 1 : t] if t else text[:, :1], positions[:, t : t + 1])[:, 0],
            x[:, t],
        )


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_close_to_the_float_model(config):
    """On text, in bits a token: far less on average than the 0.002 bits a byte that a proof allows."""
    pack = tiny_pack(config)
    assert pack.tokenizer is not None
    tokens = torch.from_numpy(np.concatenate([pack.tokenizer.encode(d) for d in val_documents()]).astype(np.int64))
    tokens = tokens[: 64 * (config.window + 1)].reshape(64, -1)
    model = GPT(config)
    model.load_state_dict(pack.state_dict())
    with torch.no_grad():
        bits = model.loss(tokens[:, :-1], tokens[:, 1:], reduction="none").double().flatten() / math.log(2)
    levels = forward(pack.exact(), tokens[:, :-1])
    exact = frequencies.intervals(levels.flatten(0, 1), tokens[:, 1:].flatten())[2]
    assert bits.std() > 1
    assert (exact - bits).abs().mean() < 0.002
    assert abs((exact - bits).mean()) < 0.0003


def integer_weights(config: ModelConfig) -> dict[str, torch.Tensor]:
    """Weights from a formula, so that no generator of random numbers decides them."""
    weights = {}
    for seed, (name, parameter) in enumerate(parameters(config).items()):
        count = math.prod(parameter.shape)
        values = (torch.arange(count) * 7919 + seed * 104_729) % 251 - 125
        weights[name] = (values / 256 + (parameter.role == "vector")).reshape(parameter.shape)
    return weights


GOLDEN = {
    "193894c12f375ba0": replace(EVERY_OPTION, yarn=1.0, parallel_from=0, smear_gate=False, attention_gate=False),
    "b2223ee0235062d4": replace(EVERY_OPTION, yarn=1.0, parallel_from=0, attention_gate=False),
    "d06617abb9684515": replace(EVERY_OPTION, yarn=1.0, parallel_from=0),
    "4602ba3b21e87183": replace(EVERY_OPTION, yarn=1.0),
    "2735c9785f43a306": EVERY_OPTION,
}
"""Digests of levels; those of a config without an option are older than the option."""


@pytest.mark.parametrize("digest, config", GOLDEN.items())
def test_golden_levels(digest, config):
    """These integers may change only together with `widths.ARITHMETIC`."""
    pack = codec.open(codec.compress(integer_weights(config), config))
    model = ExactModel(Weights(config, pack.matrices, pack.vectors))
    tokens = (torch.arange(64).reshape(2, 32) * 389) % 1024
    levels = forward(model, tokens)
    assert levels.float().std() > 1000
    assert hashlib.sha256(levels.numpy().astype("<i8").tobytes()).hexdigest()[:16] == digest


def test_sums_that_are_not_exact_are_refused():
    pack = tiny_pack(PLAIN)
    name = "blocks.1.mlp.proj.weight"
    wide = replace(pack.matrices[name], symbols=pack.matrices[name].symbols << 20)
    with pytest.raises(FormatError, match=rf"tensor {name}: sums of up to 2\^.* are not exact in 53 bits"):
        ExactModel(Weights(PLAIN, {**pack.matrices, name: wide}, pack.vectors))
    most = np.array([[1 << 30, -(1 << 30)], [5, 0]], np.int32)  # 2^31 in absolute values
    steps = np.ones(2, np.float32)
    with pytest.raises(FormatError, match=r"2\^53\.0"):
        ExactLinear("w", Quantized(most, steps), 1 << 22, torch.device("cpu"))
    linear = ExactLinear("w", Quantized(most, steps), (1 << 22) - 1, torch.device("cpu"))
    x = torch.tensor([[float((1 << 22) - 1), -float((1 << 22) - 1)]], dtype=torch.float64)
    y, _ = linear(x, torch.ones(1, 1, dtype=torch.float64))
    assert [int(v) for v in y[0]] == [((1 << 22) - 1) << 31, 5 * ((1 << 22) - 1)]


def hostile_pack(name: str, value: float, layers: int) -> Pack:
    config = replace(PLAIN, num_layers=layers)
    weights = integer_weights(config)
    hostile = {key: torch.full_like(tensor, value) for key, tensor in weights.items() if key.endswith(name)}
    return codec.open(codec.compress({**weights, **hostile}, config, sp1024()))


@pytest.mark.parametrize("name, value, layers", [("resid_mix", 6e4, 40), ("", 1e37, 1), ("_mix", 1e38, 5)])
def test_weights_that_overflow_are_refused(name, value, layers):
    with pytest.raises(FormatError, match="activations can reach"):
        hostile_pack(name, value, layers).exact()


@pytest.mark.parametrize(
    "name, value, layers", [("_mix", 6e4, 9), ("mlp.fc.weight", 1e30, 2), ("q_gain", 3e38, 2), ("c_v.weight", 1e38, 1)]
)
def test_large_weights_within_the_range_work(name, value, layers):
    pack = hostile_pack(name, value, layers)
    tokens = some_tokens(2, 32)
    levels = forward(pack.exact(), tokens)
    assert torch.equal(stepped(pack.exact(), tokens), levels)
    assert np.array_equal(levels[0].numpy(), Reference(pack)(tokens[0].tolist()))


def test_column_steps():
    """A pack of this version has none; the arithmetic is there, and near the product in float64."""
    generator = np.random.default_rng(0)
    symbols = generator.integers(-127, 128, (24, 40)).astype(np.int32)
    weights = Quantized(symbols, generator.random(24, np.float32), generator.random(40, np.float32))
    linear = ExactLinear("w", weights, 1 << 14, torch.device("cpu"))
    x = torch.from_numpy(generator.integers(-16384, 16385, (5, 40)).astype(np.float64))
    y, step = linear(x, torch.full((5, 1), 2.0**-10, dtype=torch.float64))
    expected = x.numpy() * 2.0**-10 @ weights.dequantize().astype(np.float64).T
    assert np.abs((y * step).numpy() - expected).max() < 1e-3 * np.abs(expected).max()
    inner, finer = snap(x.numpy() * weights.columns)
    assert np.array_equal((y * step).numpy(), (inner @ symbols.T) * weights.rows.astype(float) * (2.0**-10 * finer))


@pytest.mark.gpu
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_cuda_gives_the_same_levels(config):
    pack = tiny_pack(config)
    tokens = some_tokens(64, config.window)
    expected = forward(pack.exact(), tokens)
    model = pack.exact("cuda")
    assert torch.equal(forward(model, tokens), expected)
    assert torch.equal(forward(model, tokens[:1]), expected[:1])
    assert torch.equal(stepped(model, tokens[:7]), expected[:7])
    targets = tokens.flatten()
    for here, there in zip(
        frequencies.intervals(expected.flatten(0, 1), targets)[:2],
        frequencies.intervals(expected.flatten(0, 1).cuda(), targets.cuda())[:2],
        strict=True,
    ):
        assert torch.equal(here, there.cpu())
    wanted = torch.arange(len(targets)) * 7919 % (1 << FEW_BITS)
    for here, there in zip(
        frequencies.find(expected.flatten(0, 1), wanted),
        frequencies.find(expected.flatten(0, 1).cuda(), wanted.cuda()),
        strict=True,
    ):
        assert torch.equal(here, there.cpu())
