"""codec.model.families: other people's layouts, there and back, and what is refused."""

import contextlib
import importlib.util
import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from codec.cli.pack import unpack
from codec.errors import FormatError
from codec.model.families.folder import WEIGHTS, load_folder, save_folder
from codec.model.families.registry import by_model_type
from codec.model.families.sources import load_source
from codec.model.weight_files import INDEX
from codec.numerics.rope import frequencies
from tests.support.families import FAMILIES, LLAMA, byte_pairs, family_pack, family_weights
from trainer.model.transformer import Transformer


def folder_of(path: Path, name: str = "llama") -> Path:
    config = FAMILIES[name]
    return save_folder(path, family_weights(config), config, byte_pairs(config.begin, config.end))


def edit(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("name", FAMILIES)
def test_folders_there_and_back(name, tmp_path):
    config, weights = FAMILIES[name], family_weights(FAMILIES[name])
    state, found, tokenizer = load_folder(folder_of(tmp_path, name))
    assert found == config
    assert state.keys() == weights.keys()
    assert all(torch.equal(state[key], weights[key]) for key in weights)
    assert tokenizer.model == byte_pairs(config.begin, config.end).model


@pytest.mark.parametrize("name", FAMILIES)
def test_the_float_model_is_that_of_transformers(name, tmp_path):
    """A folder that we write is loaded by transformers, and its logits are ours."""
    if not importlib.util.find_spec("transformers"):
        pytest.skip("needs transformers, which is no dependency: pip install underpar[peers]")
    from transformers import AutoModelForCausalLM

    config, tokens = FAMILIES[name], torch.arange(80).view(2, 40) * 7 % 400
    theirs = AutoModelForCausalLM.from_pretrained(folder_of(tmp_path, name)).eval()
    ours = Transformer(config).eval()
    ours.load_state_dict(family_weights(config))
    with torch.inference_mode():
        assert torch.allclose(theirs(tokens).logits, ours(tokens), atol=2e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_folder_of_transformers_is_read(name, tmp_path):
    """Of its own random weights, in its own way of writing them."""
    if not importlib.util.find_spec("transformers"):
        pytest.skip("needs transformers, which is no dependency: pip install underpar[peers]")
    from transformers import AutoConfig, AutoModelForCausalLM

    values = by_model_type(FAMILIES[name].family, "").write_config(FAMILIES[name])
    theirs = AutoModelForCausalLM.from_config(AutoConfig.for_model(**values)).eval()
    theirs.save_pretrained(tmp_path, max_shard_size="20KB")
    (tmp_path / "tokenizer.json").write_bytes((folder_of(tmp_path / "ours", name) / "tokenizer.json").read_bytes())
    state, config, _ = load_folder(tmp_path)
    ours, tokens = Transformer(config).eval(), torch.arange(80).view(2, 40) * 7 % 400
    ours.load_state_dict(state)
    with torch.inference_mode():
        assert torch.allclose(theirs(tokens).logits, ours(tokens), atol=2e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_transformers_loads_what_unpack_writes(name, tmp_path):
    """The folder that `unpack` makes of a pack: the logits of its weights, and the ids of its tokenizer."""
    if not importlib.util.find_spec("transformers"):
        pytest.skip("needs transformers, which is no dependency: pip install underpar[peers]")
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

    config, tokens = FAMILIES[name], torch.arange(80).view(2, 40) * 7 % 400
    pack = family_pack(config)
    (tmp_path / "m.pack").write_bytes(pack.source.read(0, pack.size))
    folder = tmp_path / "back"
    unpack(tmp_path / "m.pack", output=folder)
    theirs = AutoModelForCausalLM.from_pretrained(folder).eval()
    ours = Transformer(config).eval()
    ours.load_state_dict({key: tensor.float() for key, tensor in pack.state_dict().items()})
    with torch.inference_mode():
        assert torch.allclose(theirs(tokens).logits, ours(tokens), atol=2e-5)
    text = "Once upon a time, 1984 — <|endoftext|>!"
    ids = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), split_special_tokens=True)(text)
    assert ids["input_ids"] == byte_pairs(config.begin, config.end).encode(text.encode()).tolist()


def test_shards_and_their_index(tmp_path):
    folder = folder_of(tmp_path)
    whole = load_file(folder / WEIGHTS)
    names = sorted(whole)
    homes = {name: f"part-{n % 2}.safetensors" for n, name in enumerate(names)}
    for home in set(homes.values()):
        save_file({name: whole[name].contiguous() for name in names if homes[name] == home}, folder / home)
    (folder / WEIGHTS).unlink()
    (folder / INDEX).write_text(json.dumps({"weight_map": homes}))
    state, _, _ = load_folder(folder)
    assert torch.equal(state["norm.weight"], family_weights(LLAMA)["norm.weight"])
    for hostile in ("../part-0.safetensors", "/etc/passwd", "part-0.bin", 7, "part-9.safetensors"):
        (folder / INDEX).write_text(json.dumps({"weight_map": homes | {names[0]: hostile}}))
        with pytest.raises(FormatError, match="index"):
            load_folder(folder)
    for broken in ("[]", "{", '{"weight_map": 3}', '{"weight_map": {}}', "[" * 100_000):
        (folder / INDEX).write_text(broken)
        with pytest.raises(FormatError):
            load_folder(folder)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model_type": "mamba"}, "model_type is 'mamba'; underpar knows gpt2, llama, qwen2, qwen3"),
        ({"hidden_act": "relu"}, "hidden_act is 'relu'; underpar knows 'silu'"),
        ({"attention_bias": True}, "attention_bias is True"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "type is 'yarn'"),
        ({"rope_scaling": {"rope_type": "linear", "factor": "2"}}, "factor is '2'"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"hidden_size": "36"}, "hidden_size is '36', expected a value of type int"),
        ({"hidden_size": 40}, "the config expects"),
        ({"num_hidden_layers": 3}, "blocks.2|layers.2"),
        ({"vocab_size": 500_000}, "vocab_size is 500000, expected 4 to 160000"),
    ],
)
def test_refusals_name_key_and_value(changes, says, tmp_path):
    folder = folder_of(tmp_path)
    edit(folder, **changes)
    with pytest.raises(FormatError, match=says):
        load_folder(folder)


def test_a_smaller_window(tmp_path):
    config = replace(FAMILIES["gpt2"], window=192)
    save_folder(tmp_path, family_weights(config), config, byte_pairs())
    source = load_source(tmp_path, {"window": 128})
    assert source.config.window == 128
    assert source.state_dict["pos_emb.weight"].shape[0] == 128
    assert load_source(tmp_path, {"window": 100}).config.window == 64  # what is left over is dropped
    for settings in ({"window": 256}, {"window": 30}, {"window": "64"}, {"num_layers": 1}):
        with pytest.raises(FormatError):
            load_source(tmp_path, settings)


def test_a_window_that_is_no_multiple_of_64(tmp_path):
    """A model of 100 positions has a window of 64; of learned positions the first 64 are kept."""
    for name, key in (("llama", "max_position_embeddings"), ("gpt2", "n_positions")):
        config = replace(FAMILIES[name], window=128)
        save_folder(tmp_path / name, family_weights(config), config, byte_pairs())
        edit(tmp_path / name, **{key: 100})
        state, found, _ = load_folder(tmp_path / name)
        assert found == replace(config, window=64)
        if name == "gpt2":
            assert torch.equal(state["pos_emb.weight"], family_weights(config)["pos_emb.weight"][:64])


@pytest.mark.parametrize(
    "changes",
    [
        {"model": {"type": "BPE", "vocab": [], "merges": []}},
        {"model": {"type": "BPE", "vocab": {"a": -1}, "merges": []}},
        {"model": {"type": "BPE", "vocab": {"a": 1 << 40}, "merges": []}},
        {"model": {"type": "BPE", "vocab": {"a": 0.5}, "merges": []}},
        {"model": {"type": "BPE", "vocab": {"a": 0, "ab": 1}, "merges": [["a", "b"]] * 10}},
        {"model": {"type": "BPE", "vocab": {"a" * 2000: 0}, "merges": []}},
        {"model": {"type": "Unigram", "vocab": {"a": 0}, "merges": []}},
        {"model": None},
        {"added_tokens": [{"id": 1 << 40, "content": "x"}]},
        {"added_tokens": [{"id": 0}]},
        {"added_tokens": 3},
        {"pre_tokenizer": None},
        {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [[]]}},
        {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated"}},
    ],
)
def test_hostile_tokenizers_are_told(changes, tmp_path):
    """Typed errors, in the memory of the file: no pattern of it is run, and no id decides how much is taken."""
    folder = folder_of(tmp_path)
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(FormatError, match="tokenizer"):
        load_folder(folder)


def test_damaged_files_of_a_folder(tmp_path):
    """Any few characters of the JSON changed: the model, or a typed error."""
    folder, generator = folder_of(tmp_path), random.Random(0)
    for name in ("tokenizer.json", "config.json"):
        path = folder / name
        good = path.read_text()
        for _ in range(60):
            at = generator.randrange(len(good))
            path.write_text(good[:at] + generator.choice('"[]{}0-1e9,:nulx') + good[at + generator.randrange(3) :])
            with contextlib.suppress(FormatError):
                load_folder(folder)
        path.write_text(good)


def test_a_config_may_not_claim_any_size(tmp_path):
    folder = folder_of(tmp_path)
    edit(folder, vocab_size=160_000, hidden_size=8192, num_hidden_layers=256, intermediate_size=32_768)
    with pytest.raises(FormatError, match="parameters"):
        load_folder(folder)


def test_rotations_are_scaled_as_the_config_says():
    plain = frequencies(*LLAMA.rope)
    linear = frequencies(*replace(LLAMA, rope_scaling="linear", rope_factor=4.0).rope)
    llama3 = frequencies(*replace(LLAMA, rope_scaling="llama3", rope_factor=4.0, rope_trained=64).rope)
    assert [float(a / b) for a, b in zip(plain, linear, strict=True)] == pytest.approx([4.0] * 5)
    slowed = [float(a / b) for a, b in zip(plain, llama3, strict=True)]
    assert slowed[0] == 1.0 and slowed[-1] == pytest.approx(4.0) and slowed == sorted(slowed)
