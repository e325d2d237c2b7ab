"""eval.score.models: each kind of file by its content, and what is wrong with one that does not fit."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

import codec
from codec.errors import CodecError, FormatError, MismatchError
from codec.model.banks import to_challenge
from codec.model.checkpoint import save_checkpoint
from eval.score.models import load_model
from tests.eval.score.test_challenge import CONFIG, artifact, contents
from trainer.data.sample import sp1024
from trainer.model.gpt import GPT


@pytest.fixture(scope="module")
def tokenizer():
    return sp1024()


@pytest.fixture
def state():
    torch.manual_seed(1)
    return {name: torch.randn_like(tensor) for name, tensor in GPT(CONFIG).state_dict().items()}


@pytest.fixture
def run(tmp_path, state, tokenizer):
    save_checkpoint(tmp_path / "run", state, CONFIG, tokenizer)
    return tmp_path / "run"


def test_a_run_folder_and_its_safetensors(run, state, tokenizer):
    for path in (run, run / "model.safetensors"):
        loaded = load_model(path)
        assert (loaded.config, loaded.tokenizer.sha256) == (CONFIG, tokenizer.sha256)
        assert all(torch.equal(loaded.state_dict[name], tensor) for name, tensor in state.items())


def test_safetensors_whose_first_bytes_are_zlibs(tmp_path, tokenizer):
    """The file begins with the length of its header, made 78 01 by spaces in the config."""
    (tmp_path / "t.model").write_bytes(tokenizer.model)
    path = tmp_path / "model.safetensors"
    save_file({"weight": torch.zeros(1)}, path, metadata={"config": CONFIG.to_json()})
    header = int.from_bytes(path.read_bytes()[:8], "little")
    padding = (0x178 - header) % 0x10000
    save_file({"weight": torch.zeros(1)}, path, metadata={"config": CONFIG.to_json()[:-1] + " " * padding + "}"})
    assert path.read_bytes().startswith(b"\x78\x01")
    with pytest.raises(MismatchError, match=r"tensor blocks\.0\.attn\.c_k\.weight: found none"):
        load_model(path, tmp_path / "t.model")


def test_a_pack_by_any_name(tmp_path, state, tokenizer):
    blob = codec.compress(state, CONFIG, tokenizer)
    path = tmp_path / "no.suffix"
    path.write_bytes(blob)
    loaded = load_model(path)
    assert (loaded.config, loaded.tokenizer.sha256) == (CONFIG, tokenizer.sha256)
    assert all(torch.equal(loaded.state_dict[name], tensor) for name, tensor in codec.open(blob).state_dict().items())


def test_safetensors_with_banks(tmp_path, state, tokenizer):
    save_checkpoint(tmp_path, to_challenge(state), CONFIG, tokenizer)
    loaded = load_model(tmp_path)
    assert all(torch.equal(loaded.state_dict[name], tensor) for name, tensor in state.items())


def test_the_float_model_has_the_weights(run, state):
    model = load_model(run).float_model()
    assert not model.training
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def test_half_precision_becomes_float32(tmp_path, state, tokenizer):
    save_checkpoint(tmp_path / "half", {name: tensor.bfloat16() for name, tensor in state.items()}, CONFIG, tokenizer)
    loaded = load_model(tmp_path / "half").state_dict
    assert all(torch.equal(loaded[name], tensor.bfloat16().float()) for name, tensor in state.items())


def test_a_challenge_artifact_needs_its_tokenizer(tmp_path, tokenizer):
    path = tmp_path / "final_model.int8.ptz"
    path.write_bytes(artifact(contents()))
    with pytest.raises(FormatError, match=r"pass a SentencePiece \.model with --tokenizer"):
        load_model(path)
    (tmp_path / "t.model").write_bytes(tokenizer.model)
    assert load_model(path, tmp_path / "t.model").config == CONFIG


@pytest.mark.parametrize(
    "content", [b"", b"x", b"UPAK", b"UPAK" + bytes(100), b"x\x9c", b"{}", bytes(9), b"\xff" * 9], ids=repr
)
def test_what_is_no_model_is_a_typed_error(tmp_path, content):
    path = tmp_path / "model"
    path.write_bytes(content)
    with pytest.raises(CodecError):
        load_model(path)


def test_a_path_that_is_not_there(tmp_path):
    for path in (tmp_path / "none.pack", tmp_path):
        with pytest.raises(FormatError, match=str(tmp_path)):
            load_model(path)


def test_weights_without_a_config(tmp_path, state):
    path = tmp_path / "plain.safetensors"
    save_file(state, path)
    with pytest.raises(FormatError, match="without a config"):
        load_model(path)


def test_weights_that_are_not_the_configs(tmp_path, state, tokenizer):
    name = "blocks.1.mlp.fc.weight"
    for change, message in (
        ({name: torch.zeros(3, 32)}, rf"tensor {name}: found \(3, 32\), its config expects \(96, 32\)"),
        ({"lm_head.weight": torch.zeros(3)}, r"tensor lm_head.weight: found \(3,\), its config expects none"),
    ):
        save_checkpoint(tmp_path, {**state, **change}, CONFIG, tokenizer)
        with pytest.raises(MismatchError, match=message):
            load_model(tmp_path)
    save_checkpoint(tmp_path, {key: tensor for key, tensor in state.items() if key != name}, CONFIG, tokenizer)
    with pytest.raises(MismatchError, match=f"tensor {name}: found none"):
        load_model(tmp_path)


def test_weights_that_are_not_finite(tmp_path, state, tokenizer):
    state["skip_weights"][0, 3] = float("nan")
    save_checkpoint(tmp_path, state, CONFIG, tokenizer)
    with pytest.raises(FormatError, match="tensor skip_weights holds values that are not finite"):
        load_model(tmp_path)


def test_a_tokenizer_with_more_pieces_than_the_model(tmp_path, tokenizer):
    small = replace(CONFIG, vocab_size=512)
    save_checkpoint(tmp_path, GPT(small).state_dict(), small, tokenizer)
    with pytest.raises(MismatchError, match="a vocabulary of 512, but the tokenizer has 1024"):
        load_model(tmp_path)
