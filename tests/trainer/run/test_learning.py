"""trainer.run: a teacher's probabilities beside the text."""

from pathlib import Path

import pytest
import torch

from codec.errors import FormatError, MismatchError
from tests.trainer.run.test_loop import (
    SHARED,
    assert_same_run,
    config,
    forked,
    metrics,
    one_thread,
    recipe_of,
    val_loss,
)
from trainer.data.sample import sp1024
from trainer.distributed import World
from trainer.model.gpt import GPT, Teaching
from trainer.optim.optimizers import Optimizers
from trainer.recipe import OptimRecipe
from trainer.run.loop import train
from trainer.run.other_models import teacher_of

__all__ = ["config", "one_thread"]  # fixtures of the loop's tests


@pytest.fixture
def teacher(config: Path, tmp_path: Path) -> str:
    train(recipe_of(config, "train.iterations=10", "train.seed=5"), tmp_path / "teacher")
    return f"learning.teacher={tmp_path / 'teacher'}"


def losses(folder: Path) -> list[float]:
    return [line["train_loss"] for line in metrics(folder)[:-1]]


def test_several_processes_learn_the_same(config: Path, tmp_path: Path, teacher: str) -> None:
    settings = (*SHARED, teacher)
    train(recipe_of(config, *settings), tmp_path / "one")
    assert forked(config, tmp_path / "two", *settings, processes=2).wait() == 0
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-3)
    assert metrics(tmp_path / "two")[-1]["val_loss"] == pytest.approx(
        metrics(tmp_path / "one")[-1]["val_loss"], rel=1e-3
    )


def test_an_interrupted_run_goes_on_as_if_never_stopped(
    config: Path, tmp_path: Path, teacher: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = (teacher, "train.iterations=20")
    train(recipe_of(config, *settings), tmp_path / "whole")

    def stop(self: object, *ignored: object) -> None:
        if len(losses(tmp_path / "parts") if (tmp_path / "parts" / "metrics.jsonl").exists() else []) >= 7:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("trainer.run.log.RunLog.move_bar", stop)
        train(recipe_of(config, *settings, "train.checkpoint_steps=5"), tmp_path / "parts")
    train(recipe_of(config, *settings, "train.checkpoint_steps=5"), tmp_path / "parts", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_a_student_comes_to_agree_with_its_teacher(config: Path, tmp_path: Path) -> None:
    """The text is noise of its own: who learns from the teacher alone comes nearer to it than to the text."""
    train(recipe_of(config, "train.iterations=60"), tmp_path / "teacher")
    recipe = recipe_of(config, f"learning.teacher={tmp_path / 'teacher'}", "learning.teacher_share=1")
    master = teacher_of(recipe, sp1024(), World())
    assert master is not None and not any(p.requires_grad for p in master.parameters())
    student = GPT(recipe.model)
    tokens = torch.randint(4, 1024, (4, 16), generator=torch.Generator().manual_seed(1))

    def distance() -> float:
        with torch.no_grad():
            known = master(tokens).softmax(-1)
            return (known * (known.log() - student(tokens).log_softmax(-1))).sum(-1).mean().item()

    student.teaching = Teaching(master, 1.0)
    optimizers, before = Optimizers(student, OptimRecipe(), World()), distance()
    for _ in range(40):
        student.loss(tokens, torch.zeros_like(tokens)).backward()
        optimizers.step(1.0, 0.9)
        student.zero_grad()
    assert distance() < before / 10


def test_teachers_that_do_not_fit_are_refused(config: Path, tmp_path: Path, teacher: str) -> None:
    with pytest.raises(MismatchError, match=r"learning.teacher .*: a window of 16 tokens, expected .* of 32 or more"):
        train(recipe_of(config, teacher, "model.window=32"), tmp_path / "run")
    with pytest.raises(FormatError, match="nothing"):
        train(recipe_of(config, "learning.teacher=nothing"), tmp_path / "run2")
    with pytest.raises(FormatError, match=r"learning.teacher_share is 1.5, expected at most 1"):
        recipe_of(config, "learning.teacher_share=1.5")


def test_a_teacher_changes_the_steps_and_not_the_scoring(config: Path, tmp_path: Path, teacher: str) -> None:
    train(recipe_of(config, "train.iterations=6"), tmp_path / "plain")
    done = train(recipe_of(config, "train.iterations=6", teacher), tmp_path / "run")
    assert losses(tmp_path / "run")[1:] != pytest.approx(losses(tmp_path / "plain")[1:], rel=1e-4)
    assert done.val_loss == pytest.approx(val_loss(recipe_of(config), tmp_path / "run"), rel=1e-6)


def test_a_teacher_compiles_to_one_graph(config: Path) -> None:
    recipe = recipe_of(config)
    torch.manual_seed(0)
    model, master = GPT(recipe.model), GPT(recipe.model)
    model.teaching = Teaching(master, 0.5)
    tokens = torch.randint(4, 1024, (4, 16))
    losses = []
    for loss in (model.loss, torch.compile(model.loss, backend="aot_eager", fullgraph=True, dynamic=False)):
        found = loss(tokens, tokens)
        found.backward()
        losses.append((found.item(), [p.grad for p in model.parameters()], model.zero_grad(set_to_none=True)))
    assert losses[0][0] == pytest.approx(losses[1][0], rel=1e-5)
    assert all(p.grad is None for p in master.parameters())
