"""eval.score.challenge: checkpoints and artifacts made here by the formats' rules, and files that only pretend to be
one.
"""

import io
import zlib
from dataclasses import replace

import brotli
import pytest
import torch

import eval.score.challenge
from codec.errors import CodecError, FormatError
from codec.model.banks import to_challenge
from codec.model.config import ModelConfig
from codec.model.parameters import parameters
from eval.score.challenge import infer_config, load_peer
from eval.score.models import load_model
from tests.support.helpers import random_weights
from trainer.data.sample import sp1024
from underpar.commands import app

CONFIG = ModelConfig(vocab_size=1024, num_layers=3, model_dim=32, num_heads=4, num_kv_heads=2, mlp_mult=3)


def contents():
    """The dict of a small model in the challenge's format, every value random."""
    torch.manual_seed(3)
    quantized, scales, dtypes, passthrough = {}, {}, {}, {}
    for name, parameter in parameters(CONFIG).items():
        if parameter.role == "vector":
            passthrough[name] = torch.randn(parameter.shape)
            continue
        quantized[name] = torch.randint(-127, 128, parameter.shape, dtype=torch.int8)
        scales[name] = torch.rand(parameter.shape[0]).half() / 127
        dtypes[name] = "bfloat16" if name == "tok_emb.weight" else "float32"
    passthrough["skip_weights"] = passthrough["skip_weights"].half()
    return {
        "__quant_format__": "int8_clean_per_row_v1",
        "quantized": quantized,
        "scales": scales,
        "dtypes": dtypes,
        "passthrough": passthrough,
        "qmeta": {name: {"scheme": "per_row", "axis": 0} for name in quantized},
        "passthrough_orig_dtypes": {"skip_weights": "float32"},
    }


def artifact(content):
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return zlib.compress(buffer.getvalue(), 9)


def test_weights_are_the_challenges_to_the_last_bit():
    content = contents()
    state, config = load_peer(artifact(content))
    assert config == CONFIG
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == {
        name: parameter.shape for name, parameter in parameters(CONFIG).items()
    }
    assert all(tensor.dtype == torch.float32 for tensor in state.values())
    q, s = content["quantized"]["tok_emb.weight"], content["scales"]["tok_emb.weight"]
    expected = torch.stack([row.float() * float(scale) for row, scale in zip(q, s, strict=True)])
    assert torch.equal(state["tok_emb.weight"], expected.bfloat16().float())
    assert not torch.equal(state["tok_emb.weight"], expected)
    name = "blocks.2.mlp.fc.weight"
    assert state[name][5, 7] == content["quantized"][name][5, 7].float() * content["scales"][name][5].float()
    assert torch.equal(state["blocks.1.attn.q_gain"], content["passthrough"]["blocks.1.attn.q_gain"])
    assert torch.equal(state["skip_weights"], content["passthrough"]["skip_weights"].float())


def test_a_quantized_tensor_may_have_one_scale():
    content = contents()
    content["quantized"]["skip_weights"] = torch.full((1, 32), 3, dtype=torch.int8)
    content["scales"]["skip_weights"] = torch.tensor(0.5).half()
    content["dtypes"]["skip_weights"] = "float32"
    del content["passthrough"]["skip_weights"]
    assert torch.equal(load_peer(artifact(content))[0]["skip_weights"], torch.full((1, 32), 1.5))


def test_every_damaged_inside_is_a_typed_error_or_a_model():
    """Bit flips below zlib's checksum: never another exception, never anything but float32 tensors."""
    raw = bytearray(zlib.decompress(artifact(contents())))
    refused = 0
    for position in range(0, len(raw), len(raw) // 150):
        damaged = raw.copy()
        damaged[position] ^= 0x55
        try:
            state, _ = load_peer(zlib.compress(bytes(damaged), 1))
            assert all(tensor.dtype == torch.float32 for tensor in state.values())
        except FormatError as error:
            refused += 1
            assert "artifact" in str(error) or "config" in str(error)
    assert refused


def test_another_format_is_named():
    with pytest.raises(FormatError, match=r"__quant_format__ is 'int6_v9', expected 'int8_clean_per_row_v1'"):
        load_peer(artifact({**contents(), "__quant_format__": "int6_v9"}))
    with pytest.raises(FormatError, match="holds a list, expected a dict"):
        load_peer(artifact([1, 2, 3]))


def test_a_tensor_that_claims_more_than_it_has_is_refused():
    content = contents()
    content["quantized"]["tok_emb.weight"] = torch.zeros(1, dtype=torch.int8).expand(1 << 30, 1 << 30)
    with pytest.raises(FormatError, match=r"tensor\.contiguous"):
        load_peer(artifact(content))


def test_many_names_for_one_tensor_are_bounded(monkeypatch):
    monkeypatch.setattr(eval.score.challenge, "MAX_BYTES", 1 << 20)
    content = contents()
    big = torch.zeros(1 << 15)
    content["passthrough"] |= {f"alias{i}": big for i in range(20)}
    with pytest.raises(FormatError, match="expected at most 262,144"):
        load_peer(artifact(content))


@pytest.mark.parametrize(
    "field, name, value, message",
    [
        ("quantized", "tok_emb.weight", torch.zeros(1024, 32), "expected int8 with a scale a row"),
        ("scales", "tok_emb.weight", torch.ones(32).half(), "expected int8 with a scale a row"),
        ("scales", "tok_emb.weight", torch.ones(1024, dtype=torch.int32), "expected int8 with a scale a row"),
        ("dtypes", "tok_emb.weight", "complex64", "was 'complex64'"),
        ("dtypes", "tok_emb.weight", None, "was 'None'"),
        ("passthrough_orig_dtypes", "skip_weights", "int8", "was 'int8'"),
        ("passthrough", "skip_weights", "text", "no contiguous tensor"),
        ("passthrough", 7, torch.ones(1), "no dict of names"),
    ],
)
def test_an_entry_that_breaks_the_format_is_named(field, name, value, message):
    content = contents()
    content[field][name] = value
    with pytest.raises(FormatError, match=message):
        load_peer(artifact(content))


def test_a_scale_or_tensor_that_is_missing_is_named():
    for field, name in (
        ("scales", "tok_emb.weight"),
        ("quantized", "tok_emb.weight"),
        ("passthrough", "blocks.0.attn.q_gain"),
    ):
        content = contents()
        del content[field][name]
        with pytest.raises(FormatError, match=name):
            load_peer(artifact(content))


def test_shapes_that_make_no_model_are_refused():
    shapes = {name: parameter.shape for name, parameter in parameters(CONFIG).items()}
    assert infer_config(shapes) == CONFIG
    for name, shape in (
        ("tok_emb.weight", (1024, 0)),
        ("tok_emb.weight", (1024,)),
        ("blocks.0.attn.q_gain", (100,)),
        ("blocks.0.attn.c_k.weight", (1, 32)),
        ("blocks.0.mlp.fc.weight", (5, 32)),
    ):
        with pytest.raises(FormatError):
            infer_config({**shapes, name: shape})


RECORD = ModelConfig(
    vocab_size=1024,
    window=2048,
    num_layers=11,
    model_dim=32,
    num_heads=2,
    num_kv_heads=1,
    activation="leaky_relu2",
    rope_dims=16,
    skips="gated",
    xsa_layers=11,
    ln_scale=True,
    loop_start=4,
    loop_end=6,
    loop_count=3,
)
"""The record of 2026-04-05, narrow."""


def saved(content):
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def later_contents(state):
    """The dict of a model in the form of the looped records, its matrices in 63 steps a row, and what it stands for."""
    weights, notes, expected = {}, {}, {}
    for name, tensor in state.items():
        if parameters(RECORD)[name].role == "vector":
            weights[name], notes[name] = tensor.half(), "passthrough (float16)"
            expected[name] = tensor.half().float()
            continue
        steps = (tensor.abs().amax(1) / 31).half()
        symbols = (tensor / steps.float()[:, None]).round().clamp(-31, 31).to(torch.int8)
        weights[f"{name}.q"], weights[f"{name}.scale"], notes[name] = symbols, steps, "gptq (int6)"
        product = symbols.float() * steps.float()[:, None]
        expected[name] = product.bfloat16().float() if name == "tok_emb.weight" else product
    return {"w": weights, "m": notes}, expected


def test_a_looped_record_is_read_to_the_last_bit():
    content, expected = later_contents(random_weights(RECORD))
    raw = saved(content)
    shuffled = b"BSHF\x02" + raw[::2] + raw[1::2]
    for blob in (brotli.compress(raw, quality=1), brotli.compress(shuffled, quality=1)):
        state, config = load_peer(blob)
        assert config == RECORD
        assert sorted(state) == sorted(expected)
        assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())


LATER_RECORD = replace(RECORD, loop_start=3, parallel_from=7)


UNTIED = replace(CONFIG, tied_head=False, bigram_buckets=64, bigram_dim=16)


@pytest.mark.parametrize("config", [CONFIG, RECORD, LATER_RECORD, UNTIED])
def test_a_checkpoint_with_or_without_banks(config):
    state = random_weights(config)
    for blob in (saved(state), saved(to_challenge(state))):
        found, inferred = load_peer(blob)
        assert inferred == config
        assert sorted(found) == sorted(state)
        assert all(torch.equal(found[name], tensor) for name, tensor in state.items())


def test_what_the_tensors_do_not_show_is_said(tmp_path):
    other = replace(RECORD, loop_start=3, loop_count=2)  # 14 executions, too
    blob = saved(random_weights(other))
    assert load_peer(blob)[1] == RECORD
    assert load_peer(blob, {"loop_start": 3, "loop_end": 6, "loop_count": 2})[1] == other
    deeper = replace(RECORD, num_layers=12, xsa_layers=12)
    with pytest.raises(FormatError, match="8 skips of 12 layers: some run several times"):
        load_peer(saved(random_weights(deeper)))
    plain = replace(RECORD, skips="add")
    content, _ = later_contents(random_weights(plain))
    with pytest.raises(FormatError, match="of a record before the looped records"):
        load_peer(saved(content))
    assert load_peer(saved(content), {"window": 512})[1].window == 512
    with pytest.raises(FormatError, match="two residual streams"):
        load_peer(saved({**random_weights(RECORD), "parallel_post_lambdas": torch.ones(11, 2, 2)}))


def test_an_imported_artifact_is_a_run_folder(tmp_path):
    content, expected = later_contents(random_weights(RECORD))
    (tmp_path / "final_model.int6.ptz").write_bytes(brotli.compress(saved(content), quality=1))
    (tmp_path / "t.model").write_bytes(sp1024().model)
    arguments = ["import", str(tmp_path / "final_model.int6.ptz"), "window=64", "-o", str(tmp_path / "run")]
    app([*arguments, "--tokenizer", str(tmp_path / "t.model"), "--json"], standalone_mode=False)
    loaded = load_model(tmp_path / "run")
    assert loaded.config == replace(RECORD, window=64)
    with pytest.raises(CodecError, match="it exists"):
        app(arguments, standalone_mode=False)
    assert all(torch.equal(loaded.state_dict[name], tensor) for name, tensor in expected.items())
