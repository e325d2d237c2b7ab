"""codec.model.banks: banks have the layout of the challenge's scripts, and come apart again."""

import pytest
import torch
from safetensors.torch import load_file

from codec.errors import FormatError
from codec.model.banks import BANKS, from_challenge, to_challenge
from tests.support.helpers import EVERY_OPTION, PLAIN, random_weights, tiny_blob, tiny_pack
from underpar.commands import app


@pytest.mark.parametrize("config", [PLAIN, EVERY_OPTION])
def test_banks_come_apart_again(config):
    state = random_weights(config)
    banked = to_challenge(state)
    layers, dim = config.num_layers, config.model_dim
    assert banked["qo_bank"].shape == (2 * layers, dim, dim)
    assert banked["kv_bank"].shape == (2 * layers, config.kv_dim, dim)
    assert banked["mlp_up_bank"].shape == (layers, config.mlp_mult * dim, dim)
    assert banked["mlp_down_bank"].shape == (layers, dim, config.mlp_mult * dim)
    assert torch.equal(banked["qo_bank"][layers + 1], state["blocks.1.attn.proj.weight"])
    assert torch.equal(banked["kv_bank"][1], state["blocks.1.attn.c_k.weight"])
    assert not any(name.startswith("blocks") and name.endswith("weight") for name in banked)
    again = from_challenge(banked)
    assert sorted(again) == sorted(state)
    assert all(torch.equal(again[name], tensor) for name, tensor in state.items())


def test_a_state_dict_without_banks_stays():
    state = random_weights(PLAIN)
    assert all(from_challenge(state)[name] is tensor for name, tensor in state.items())


def test_the_scale_of_bigrams_is_a_scalar_there():
    state = random_weights(EVERY_OPTION)
    assert to_challenge(state)["bigram.scale"].shape == ()
    assert from_challenge(to_challenge(state))["bigram.scale"].shape == (1,)


@pytest.mark.parametrize("bank", BANKS)
def test_a_bank_that_is_none_is_named(bank):
    for shape in ((4, 4), (0, 4, 4)):
        with pytest.raises(FormatError, match=rf"tensor {bank}: found \({shape[0]}, "):
            from_challenge({bank: torch.zeros(shape)})
    with pytest.raises(FormatError, match=r"qo_bank: found \(3, 4, 4\)"):
        from_challenge({"qo_bank": torch.zeros(3, 4, 4)})


def test_a_missing_matrix_is_named():
    state = random_weights(PLAIN)
    del state["blocks.1.mlp.fc.weight"]
    with pytest.raises(FormatError, match=r"tensor blocks\.1\.mlp\.fc\.weight is missing"):
        to_challenge(state)
    with pytest.raises(FormatError, match="is missing"):
        to_challenge({"weight": torch.zeros(2, 2)})


def test_unpack_writes_banks(tmp_path):
    (tmp_path / "tiny.pack").write_bytes(tiny_blob())
    app(["unpack", str(tmp_path / "tiny.pack"), "-o", str(tmp_path / "b.safetensors"), "--challenge", "--json"],
        standalone_mode=False)  # fmt: skip
    found, state = from_challenge(load_file(tmp_path / "b.safetensors")), tiny_pack().state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in state.items())
