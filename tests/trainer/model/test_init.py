"""Initial matrices have the singular values that their name promises; what starts at 0 still does."""

import pytest
import torch

from codec.model.config import ModelConfig
from codec.model.parameters import parameters
from trainer.model.gpt import GPT
from trainer.model.init import initialise
from trainer.recipe import INITIAL

CONFIG = ModelConfig(vocab_size=32, window=8, num_layers=2, model_dim=16, num_heads=2, num_kv_heads=1, mlp_mult=3)


@pytest.mark.parametrize("way", INITIAL)
def test_matrices_start_as_named(way: str) -> None:
    torch.manual_seed(0)
    before = GPT(CONFIG)
    torch.manual_seed(0)
    model = GPT(CONFIG)
    initialise(model, way)
    for name, parameter in parameters(CONFIG).items():
        tensor, old = model.state_dict()[name], before.state_dict()[name]
        if way == "uniform" or parameter.role != "matrix" or name.endswith("proj.weight"):
            assert torch.equal(tensor, old), name
            continue
        values = torch.linalg.svdvals(tensor)
        expected = 1.0 if way == "orthogonal" else (tensor.shape[0] / tensor.shape[1]) ** 0.5
        assert values.max().item() == pytest.approx(expected, rel=1e-4), name
        assert values.min().item() == pytest.approx(1.0, rel=1e-4) or way == "spectral"
        assert values.min() < 0.9 * values.max() or way == "orthogonal"
