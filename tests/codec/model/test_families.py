"""codec.model.families: other people's layouts, there and back, and what is refused."""

import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from codec.errors import FormatError
from codec.model.families.folder import WEIGHTS, load_folder, save_folder
from codec.model.families.registry import by_model_type
from codec.model.families.sources import load_source
from codec.model.weight_files import INDEX
from codec.numerics.rope import frequencies
from tests.support.families import FAMILIES, LLAMA, byte_pairs, family_weights
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
        pytest.skip("needs transformers, which is no dependency")
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
        pytest.skip("needs transformers, which is no dependency")
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
    for settings in ({"window": 256}, {"window": 100}, {"window": "64"}, {"num_layers": 1}):
        with pytest.raises(FormatError):
            load_source(tmp_path, settings)


def test_rotations_are_scaled_as_the_config_says():
    plain = frequencies(*LLAMA.rope)
    linear = frequencies(*replace(LLAMA, rope_scaling="linear", rope_factor=4.0).rope)
    llama3 = frequencies(*replace(LLAMA, rope_scaling="llama3", rope_factor=4.0, rope_trained=64).rope)
    assert [float(a / b) for a, b in zip(plain, linear, strict=True)] == pytest.approx([4.0] * 5)
    slowed = [float(a / b) for a, b in zip(plain, llama3, strict=True)]
    assert slowed[0] == 1.0 and slowed[-1] == pytest.approx(4.0) and slowed == sorted(slowed)
