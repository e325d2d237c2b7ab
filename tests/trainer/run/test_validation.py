"""trainer.run.validation: a score is divided by bytes that the text has."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from codec.errors import FormatError
from codec.model.config import ModelConfig
from trainer.data.prepare import prepare
from trainer.data.sample import sp1024
from trainer.data.shards import find_shards
from trainer.data.source import Source, text_share
from trainer.distributed import World
from trainer.recipe import Recipe
from trainer.run.validation import validate

TEXT = "\ufdfa" * 400
"""A sign of three bytes of which the challenge's tokenizer makes 33."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "text.jsonl"
    path.write_text(2 * (json.dumps({"text": TEXT}) + "\n"))
    prepare([path], sp1024(), tmp_path / "shards", val_documents=1)
    return tmp_path / "shards"


def score(folder: Path, shares: tuple[float, float]) -> float:
    """Bits per byte of a nat a token."""
    recipe = Recipe()
    recipe = replace(recipe, model=ModelConfig(window=64), train=replace(recipe.train, val_tokens=1 << 20))
    source = Source([], [], find_shards(folder, "val"), sp1024(), shares)

    def loss(inputs: torch.Tensor, targets: torch.Tensor, reduction: str) -> torch.Tensor:
        return torch.ones(targets.shape)

    return validate(loss, source, recipe, World(device=torch.device("cpu"))).bpb


def test_a_text_that_a_tokenizer_inflates_is_counted_as_it_is(folder: Path) -> None:
    share = text_share(folder, "val")
    assert 1 / 12 < share < 1 / 9
    tokens = len(sp1024().encode(TEXT.encode()))
    assert score(folder, (1.0, share)) == pytest.approx(tokens / math.log(2) / len(TEXT.encode()), rel=0.05)
    assert score(folder, (1.0, 1.0)) < 0.12 * score(folder, (1.0, share))  # what it was divided by


def test_what_a_tokenizer_loses_is_not_counted(folder: Path, tmp_path: Path) -> None:
    """The tokens of a text with blank lines stand for fewer bytes than it has."""
    path = tmp_path / "lines.jsonl"
    path.write_text(2 * (json.dumps({"text": "a\n\n\nb" * 50}) + "\n"))
    prepare([path], sp1024(), tmp_path / "lossy", val_documents=1)
    assert text_share(tmp_path / "lossy", "val") == 1.0
    assert text_share(tmp_path, "val") == 1.0  # no manifest


def test_a_manifest_of_something_else(folder: Path) -> None:
    (folder / "manifest.json").write_text("[]")
    with pytest.raises(FormatError, match="not one of `underpar data prepare`"):
        text_share(folder, "val")
