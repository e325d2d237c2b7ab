"""The FLOPs of a token against PyTorch's own count of a training step's matrix products."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from codec.model.config import ModelConfig
from trainer.model.flops import flops_per_token, utilisation
from trainer.model.gpt import GPT
from trainer.recipe import load_recipe

TINY = {"vocab_size": 48, "window": 16, "num_layers": 3, "model_dim": 32, "num_heads": 2, "num_kv_heads": 1}


@pytest.mark.parametrize(
    "config",
    [
        ModelConfig(**TINY),
        ModelConfig(**TINY, bigram_buckets=64, bigram_dim=8, mlp_mult=3),
        ModelConfig(**TINY, loop_start=1, loop_end=2, loop_count=3),
    ],
)
def test_products_are_counted(config: ModelConfig) -> None:
    """Of attention PyTorch counts the whole square, of which a causal model needs half."""
    tokens = torch.zeros(4, 16, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter, torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        GPT(config).loss(tokens, tokens).backward()
    square = 6 * len(config.schedule) * 2 * 32 * 16 / 2
    assert counter.get_total_flops() / 64 == pytest.approx(flops_per_token(config) + square)


def test_the_baseline_needs_what_is_known_of_it() -> None:
    """About 131 million for its 17 million parameters."""
    assert flops_per_token(load_recipe("baseline").model) == pytest.approx(131e6, rel=0.01)
    model = load_recipe("record").model
    assert flops_per_token(model, loops=False) < flops_per_token(model, window=1024) < flops_per_token(model)


def test_the_best_of_a_cpu_is_not_known() -> None:
    assert utilisation(1e9, torch.device("cpu")) is None
