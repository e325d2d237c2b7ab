"""Muon against the singular value decomposition, Adam's groups, and the state that resuming needs."""

import copy
import math

import pytest
import torch

from codec.config import ModelConfig
from trainer.distributed import World
from trainer.model import GPT
from trainer.optim import Muon, Optimizers, orthogonalise
from trainer.recipe import OptimRecipe

CONFIG = ModelConfig(
    vocab_size=32, window=8, num_layers=2, model_dim=16, num_heads=2, num_kv_heads=1, bigram_buckets=9, bigram_dim=4
)


def polar(matrix: torch.Tensor) -> torch.Tensor:
    """U V^T of a matrix U S V^T."""
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    return u @ v


@pytest.mark.parametrize("shape", [(8, 8), (4, 12), (12, 4)])
def test_orthogonalise_keeps_singular_vectors_and_levels_singular_values(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    u, _, v = torch.linalg.svd(torch.randn(3, *shape), full_matrices=False)
    stack = u * torch.linspace(0.05, 1.0, min(shape)) @ v
    found = u.mT @ orthogonalise(stack) @ v.mT
    diagonal = found.diagonal(dim1=-2, dim2=-1)
    assert (found - torch.diag_embed(diagonal)).abs().max() < 1e-4
    assert diagonal.min() > 0.6 and diagonal.max() < 1.3


def test_orthogonalise_treats_the_matrices_of_a_stack_alone() -> None:
    stack = torch.randn(4, 6, 10, generator=torch.Generator().manual_seed(1))
    alone = torch.cat([orthogonalise(matrix[None]) for matrix in stack])
    torch.testing.assert_close(orthogonalise(stack), alone)


def test_orthogonalise_ignores_scale_and_leaves_zero_alone() -> None:
    matrix = torch.randn(1, 5, 5, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(orthogonalise(matrix), orthogonalise(1000 * matrix))
    assert not orthogonalise(torch.zeros(1, 5, 5)).any()


def test_muon_steps_as_its_formula_says() -> None:
    torch.manual_seed(3)
    weights = [torch.nn.Parameter(torch.randn(*shape)) for shape in ((12, 4), (4, 4), (12, 4))]
    muon = Muon(weights, World())
    buffers = [torch.zeros_like(weight) for weight in weights]
    for _ in range(3):
        expected = []
        for weight, buffer in zip(weights, buffers, strict=True):
            weight.grad = torch.randn_like(weight)
            buffer.mul_(0.9).add_(weight.grad)
            update = orthogonalise((weight.grad + 0.9 * buffer)[None])[0]
            reach = 0.1 * math.sqrt(max(1.0, weight.shape[0] / weight.shape[1]))
            expected.append(weight.detach() * (1 - 0.1 * 0.5) - reach * update)
        muon.step(lr=0.1, momentum=0.9, weight_decay=0.5)
        for weight, value in zip(weights, expected, strict=True):
            torch.testing.assert_close(weight.detach(), value)


def test_muon_finds_the_polar_factor_that_a_linear_loss_wants() -> None:
    torch.manual_seed(4)
    target = torch.randn(8, 8)
    weight = torch.nn.Parameter(torch.zeros(8, 8))
    muon = Muon([weight], World())
    weight.grad = -target
    muon.step(lr=1.0, momentum=0.0, weight_decay=0.0)
    cosine = torch.nn.functional.cosine_similarity(weight.flatten(), polar(target).flatten(), dim=0)
    assert cosine > 0.95


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
