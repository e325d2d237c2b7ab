"""Which optimizer takes what, clipping, learning rates, and the state that resuming needs."""

import copy

import pytest
import torch

from codec.model.config import ModelConfig
from trainer.distributed import World
from trainer.model.gpt import GPT
from trainer.optim.optimizers import Optimizers
from trainer.recipe import OptimRecipe

CONFIG = ModelConfig(
    vocab_size=32, window=8, num_layers=2, model_dim=16, num_heads=2, num_kv_heads=1, bigram_buckets=9, bigram_dim=4
)


def test_every_parameter_has_one_optimizer() -> None:
    model = GPT(CONFIG)
    optimizers = Optimizers(model, OptimRecipe(), World())
    by_muon = [p for group in optimizers.muon.groups.values() for p in group]
    tables, vectors = ([*group["params"]] for group in optimizers.adam.param_groups)
    assert sorted(map(id, by_muon + tables + vectors)) == sorted(map(id, model.parameters()))
    assert {id(model.tok_emb.weight), id(model.get_parameter("bigram.embed.weight"))} == set(map(id, tables))
    assert all(p.ndim == 2 for p in by_muon)


def test_learning_rates_follow_the_scale() -> None:
    model = GPT(CONFIG)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    tokens = torch.randint(0, 32, (2, 8))
    model.loss(tokens, tokens).backward()
    optimizers = Optimizers(model, OptimRecipe(embed_lr=0.5, vector_lr=0.25), World())
    optimizers.step(scale=0.1, momentum=0.9)
    assert [group["lr"] for group in optimizers.adam.param_groups] == [0.05, 0.025]
    optimizers.step(scale=0.0, momentum=0.9)
    moved = (model.tok_emb.weight - before["tok_emb.weight"]).abs().max()
    assert moved.item() == pytest.approx(0.05, rel=1e-3)  # Adam's first step is its learning rate


def test_a_restored_state_steps_alike() -> None:
    torch.manual_seed(5)
    tokens = torch.randint(0, 32, (2, 9))
    models = [GPT(CONFIG), GPT(CONFIG)]
    optimizers = [Optimizers(model, OptimRecipe(), World()) for model in models]

    def step(i: int) -> None:
        models[i].zero_grad()
        models[i].loss(tokens[:, :-1], tokens[:, 1:]).backward()
        optimizers[i].step(1.0, 0.9)

    step(0)
    step(0)
    models[1].load_state_dict(models[0].state_dict())
    optimizers[1].load_state_dict(copy.deepcopy(optimizers[0].state_dict()))
    step(0)
    step(1)
    for name, tensor in models[0].state_dict().items():
        assert torch.equal(tensor, models[1].state_dict()[name]), name


@pytest.mark.parametrize("limit", [0.01, 1e6])
def test_gradients_are_clipped_by_their_norm_together(limit: float) -> None:
    models = [GPT(CONFIG), GPT(CONFIG)]
    models[1].load_state_dict(models[0].state_dict())
    tokens = torch.randint(0, 32, (2, 8), generator=torch.Generator().manual_seed(6))
    recipes = [OptimRecipe(grad_clip=limit, adam_eps=1e-2), OptimRecipe(adam_eps=1e-2)]
    for model, recipe in zip(models, recipes, strict=True):
        model.loss(tokens, tokens).backward()
        if not recipe.grad_clip:
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), limit)
            assert (norm > limit) == (limit < 1)
        Optimizers(model, recipe, World()).step(1.0, 0.9)
    for name, tensor in models[0].state_dict().items():
        torch.testing.assert_close(tensor, models[1].state_dict()[name], msg=lambda text, name=name: f"{name}: {text}")
