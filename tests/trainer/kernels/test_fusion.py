"""Which kernels of our own a run uses, by device, model and recipe."""

import pytest
import torch

from trainer.kernels.fusion import Fusion, fusion_of
from trainer.recipe import load_recipe

pytest.importorskip("triton")

ALL = Fusion(joint=True, heads=True, loss=True, mlp=True, xsa=True)


@pytest.mark.parametrize(
    ("override", "capability", "expected"),
    [
        ("train.kernels=heads loss mlp xsa", (9, 0), ALL),
        ("train.kernels=heads loss mlp xsa", (8, 0), Fusion(joint=True, heads=True, loss=True, xsa=True)),
        ("train.kernels=heads", (9, 0), Fusion(joint=True, heads=True)),
        ("train.kernels=", (9, 0), Fusion(joint=True)),
        ("train.fp8=true", (9, 0), Fusion(joint=True, fp8=True, heads=True, loss=True, xsa=True)),
        ("model.model_dim=480", (9, 0), Fusion(joint=True, heads=True, loss=True, xsa=True)),
        ("model.activation=swiglu", (9, 0), Fusion(joint=True, heads=True, loss=True, xsa=True)),
    ],
)
def test_kernels_are_used_where_they_fit(
    monkeypatch: pytest.MonkeyPatch, override: str, capability: tuple[int, int], expected: Fusion
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    recipe = load_recipe("record", [override])
    assert fusion_of(recipe, torch.device("cuda", 0)) == expected
    assert fusion_of(recipe, torch.device("cpu")) == Fusion(joint=True, fp8=expected.fp8)
