"""eval.peer: artifacts made here by the format's rules, and files that only pretend to be one."""

import io
import pickle
import zipfile
import zlib

import pytest
import torch

import eval.peer
from codec.config import ModelConfig
from codec.errors import FormatError
from codec.parameters import parameters
from eval.peer import infer_config, load_peer

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


def test_what_a_missing_byte_or_a_missing_end_does():
    blob = artifact(contents())
    for size in (0, 1, 2, 100, len(blob) // 2, len(blob) - 1):
        with pytest.raises(FormatError, match="truncated"):
            load_peer(blob[:size])


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


class Exploit:
    def __reduce__(self):
        return (exec, ("raise KeyboardInterrupt",))


def test_code_in_the_pickle_never_runs():
    with pytest.raises(FormatError, match=r"not a torch\.save file of plain tensors"):
        load_peer(artifact({"__quant_format__": "int8_clean_per_row_v1", "quantized": Exploit()}))
    with pytest.raises(FormatError, match=r"holds no torch\.save file"):
        load_peer(zlib.compress(pickle.dumps(Exploit())))


def test_another_format_is_named():
    with pytest.raises(FormatError, match=r"__quant_format__ is 'int6_v9', expected 'int8_clean_per_row_v1'"):
        load_peer(artifact({**contents(), "__quant_format__": "int6_v9"}))
    with pytest.raises(FormatError, match="__quant_format__ is 'list'"):
        load_peer(artifact([1, 2, 3]))
    with pytest.raises(FormatError, match="not zlib data"):
        load_peer(b"UPAK" + bytes(64))


def test_unpacking_is_bounded(monkeypatch):
    monkeypatch.setattr(eval.peer, "MAX_BYTES", 1 << 20)
    with pytest.raises(FormatError, match="unpacks to over 1,048,576 bytes"):
        load_peer(zlib.compress(bytes(1 << 24)))


def test_compressed_records_are_refused():
    """They would unpack past the bound on the file that holds them."""
    stored = io.BytesIO(zlib.decompress(artifact(contents())))
    packed = io.BytesIO()
    with zipfile.ZipFile(stored) as source, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target:
        for record in source.infolist():
            target.writestr(record.filename, source.read(record))
    with pytest.raises(FormatError, match="compressed records"):
        load_peer(zlib.compress(packed.getvalue()))


def test_a_tensor_that_claims_more_than_it_has_is_refused():
    content = contents()
    content["quantized"]["tok_emb.weight"] = torch.zeros(1, dtype=torch.int8).expand(1 << 30, 1 << 30)
    with pytest.raises(FormatError, match="no contiguous tensor"):
        load_peer(artifact(content))


def test_many_names_for_one_tensor_are_bounded(monkeypatch):
    monkeypatch.setattr(eval.peer, "MAX_BYTES", 1 << 20)
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
