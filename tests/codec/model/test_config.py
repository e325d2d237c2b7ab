"""codec.model.config: what a model's shape may be, what follows from it, and errors that say what is wrong."""

from dataclasses import asdict

import pytest

from codec.errors import FormatError
from codec.model.config import ModelConfig
from codec.model.parameters import parameters
from tests.support.helpers import EVERY_OPTION, RARE_OPTIONS


@pytest.mark.parametrize("config", [ModelConfig(), EVERY_OPTION, RARE_OPTIONS])
def test_json_and_back(config):
    assert ModelConfig.from_json(config.to_json()) == config
    assert ModelConfig.from_json("{}") == ModelConfig()


def test_every_option_is_off_by_default():
    """Options that are off have no tensors: a pack from before an option reads as it did."""
    names = {name.split(".")[-1] for name in parameters(ModelConfig())}
    assert names == {"weight", "q_gain", "attn_scale", "mlp_scale", "resid_mix", "skip_weights"}
    switched = {n for n, v in asdict(RARE_OPTIONS).items() if v != getattr(ModelConfig(), n)}
    left = {"vocab_size", "mlp_mult", "rope_base", "logit_softcap", "value_layers", "tied_head"}
    assert switched == set(asdict(ModelConfig())) - left


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"layers": 3}, r"unknown entries \['layers'\]"),
        ({"num_layers": 2.0}, "num_layers is 2.0, expected a value of type int"),
        ({"smear_gate": 1}, "smear_gate is 1, expected a value of type bool"),
        ({"num_layers": 0}, "num_layers is 0, expected 1 to 256"),
        ({"activation": "gelu"}, "activation is 'gelu'"),
        ({"skips": "none"}, "skips is 'none'"),
        ({"model_dim": 500}, "must be an even number"),
        ({"num_kv_heads": 3}, "must divide num_heads"),
        ({"rope_dims": 66}, "expected an even number to 64"),
        ({"yarn": 0.5}, "yarn is 0.5, expected 1.0 to 64"),
        ({"parallel_from": 10}, "parallel_from is 10, expected 0 to 9"),
        ({"value_layers": 0}, "value_layers is 0, expected 1"),
        ({"value_dims": -1}, "value_dims is -1"),
        ({"random_rank": 1, "model_dim": 16384, "num_heads": 64}, "random maps of up to .* signs, expected at most"),
        ({"bigram_buckets": 1}, "at least 2"),
        ({"model_dim": 8, "num_heads": 4, "attention_gate": True}, "gates read 12 entries"),
        ({"embedding_dim": 8, "tied_head": False}, "a factorised embedding is tied"),
    ],
)
def test_errors_say_what_is_wrong(entries, message):
    with pytest.raises(FormatError, match=message):
        ModelConfig.from_dict(entries)


def test_layers_with_an_option():
    config = ModelConfig(num_layers=4, parallel_from=2, value_dims=8, value_layers=3)
    assert [config.parallel(layer) for layer in range(4)] == [False, False, True, True]
    assert [config.adds_values(layer) for layer in range(4)] == [False, True, True, True]
    assert not any(ModelConfig().parallel(layer) or ModelConfig().adds_values(layer) for layer in range(9))
