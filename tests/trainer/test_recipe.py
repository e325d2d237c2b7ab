"""Recipes: those that ship, overrides, errors that name what is known; and the schedules that they stand for."""

from dataclasses import replace
from pathlib import Path

import pytest

from codec.errors import FormatError
from trainer.optim.schedule import averages, lr_scale, muon_momentum, over, phase, phases
from trainer.recipe import RECIPES, DataRecipe, OptimRecipe, Recipe, TrainRecipe, differences, load_recipe


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.toml")), ids=lambda path: path.stem)
def test_shipped_recipes_load(path: Path) -> None:
    recipe = load_recipe(path.stem)
    assert Recipe.from_dict(recipe.to_dict()) == recipe


def test_defaults_are_the_challenge_baseline() -> None:
    baseline = load_recipe("baseline")
    assert baseline.model == Recipe().model
    assert baseline.optim == Recipe().optim
    assert (baseline.train.batch_tokens, baseline.train.seconds, baseline.train.warmdown_steps) == (524_288, 600, 1200)


def test_record_has_the_size_of_the_records() -> None:
    model = load_recipe("record").model
    assert model.schedule == (0, 1, 2, 3, 4, 5, 4, 5, 4, 5, 6, 7, 8, 9, 10)
    assert (model.vocab_size, model.rotary_dims, model.xsa_layers) == (8192, 16, 11)


def test_overrides_are_toml_values_or_plain_text() -> None:
    overrides = ["model.num_layers=4", "optim.matrix_lr = 1", "model.skips=gated", 'data.shards="a=b"']
    recipe = load_recipe("baseline", overrides)
    assert recipe.model.num_layers == 4
    assert recipe.optim.matrix_lr == 1.0 and type(recipe.optim.matrix_lr) is float
    assert recipe.model.skips == "gated"
    assert recipe.data.shards == "a=b"


def test_a_file_needs_only_what_differs(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("[train]\niterations = 5\nseconds = 0\n")
    assert load_recipe(str(path)) == Recipe(train=TrainRecipe(iterations=5, seconds=0.0))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.iteration=5", "unknown entry train.iteration.*'iterations'"),
        ("model.layers=5", "unknown entries.*num_layers"),
        ("trainer.iterations=5", "unknown sections.*train"),
        ("train.iterations=few", "train.iterations is 'few'.*int"),
        ("train.seed=true", "train.seed is True.*int"),
        ("iterations=5", "section.entry=value"),
        ("train.iterations", "section.entry=value"),
        ("optim.matrix_lr=-1", "matrix_lr is -1"),
        ("train.batch_tokens=1000", "multiple of model.window"),
        ("train.batch_tokens=0", "multiple of model.window"),
        ("train.warmdown_fraction=0.5", "both set"),
        ("train.log_every=0", "at least 1"),
        ("train.compiling=slow", "compiling is 'slow'.*searched"),
        ("train.kernels=heads tails", "has ..tails.., expected some of"),
        ("optim.orthogonal=svd", "orthogonal is 'svd'.*polar_express"),
        ("train.initial=zeros", "initial is 'zeros'.*spectral"),
        ("train.reserved_seconds=600", "reserved_seconds is 600.0, expected less"),
        ("train.swa_fraction=0", "swa_fraction is 0.*above 0"),
        ("train.window_schedule=[[0, 700]]", "700, which does not divide 1024"),
        ("train.window_schedule=[[0, 0]]", "has 0, expected a multiple"),
        ("train.window_schedule=[[0.1, 512]]", "ascend from 0"),
        ("train.window_schedule=[[0, 512], [0.5, 1024], [0.5, 512]]", "ascend from 0"),
        ("train.window_schedule=[512, 1024]", "expected pairs"),
        ("train.window_schedule=512", "expected pairs"),
        ("train.batch_schedule=[[0, 1000]]", "has 1000, expected a multiple of 1024"),
        ("train.batch_schedule=[[0, 1024]]", "a multiple of a micro-batch, 524288 / 4"),
        ("train.loop_from=1", "loop_from is 1.0, expected.*less"),
        ("data.late_from=1", "late_from is 1.0, expected.*less"),
        ("data.mixture=web", "mixture is 'web', expected folders with weights"),
        ('data.mixture=[["web", 0]]', "expected folders with weights above 0"),
        ('data.mixture=[["web"]]', "expected folders with weights above 0"),
        ('data.mixture=[["web", nan]]', "expected folders with weights above 0"),
        ("data.late_from=-0.1", "late_from is -0.1, expected a share"),
    ],
)
def test_bad_overrides_say_what_is_expected(override: str, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        load_recipe("baseline", [override])


def test_only_one_average_is_saved() -> None:
    with pytest.raises(FormatError, match="both set"):
        load_recipe("baseline", ["train.ema_decay=0.9", "train.swa_every=10"])


def test_a_run_without_an_end_is_refused() -> None:
    with pytest.raises(FormatError, match="both 0"):
        load_recipe("baseline", ["train.iterations=0", "train.seconds=0"])


def test_missing_and_broken_files_are_reported(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"neither a file nor one of.*baseline"):
        load_recipe("nothing")
    path = tmp_path / "broken.toml"
    path.write_text("model = = 3")
    with pytest.raises(FormatError, match="not TOML"):
        load_recipe(str(path))
    path.write_text("model = 3")
    with pytest.raises(FormatError, match="expected a table"):
        load_recipe(str(path))


def test_a_resumed_run_may_last_longer_but_not_be_another() -> None:
    saved = load_recipe("small")
    assert differences(saved, load_recipe("small", ["train.seconds=900", "train.log_every=1"])) == []
    assert differences(saved, load_recipe("small", ["data.seed=7"])) == ["data.seed: 0 -> 7"]


def test_warmdown_by_steps() -> None:
    plan = TrainRecipe(iterations=100, seconds=0.0, warmdown_steps=20)
    scales = [lr_scale(plan, step, 1.0) for step in (0, 79, 80, 90, 99)]
    assert scales == pytest.approx([1, 1, 1, 0.5, 0.05])


def test_warmdown_by_the_clock_follows_the_measured_step_time() -> None:
    plan = TrainRecipe(iterations=0, seconds=100.0, warmdown_steps=20)
    assert lr_scale(plan, 0, 0.0) == 1
    assert lr_scale(plan, 40, 40.0) == 1  # a second a step: it begins at 80 s
    assert lr_scale(plan, 90, 90.0) == pytest.approx(0.5)
    assert lr_scale(plan, 45, 90.0) == pytest.approx(0.25)  # two seconds a step: it began at 60 s
    assert lr_scale(plan, 50, 101.0) == 0


def test_the_nearer_cap_counts() -> None:
    plan = TrainRecipe(iterations=100, seconds=1000.0, warmdown_steps=20)
    assert lr_scale(plan, 90, 90.0) == pytest.approx(0.5)
    assert not over(plan, 99, 999.0)
    assert over(plan, 100, 5.0) and over(plan, 5, 1000.0)


def test_warmdown_as_a_share_of_the_run() -> None:
    by_clock = TrainRecipe(iterations=0, seconds=100.0, warmdown_steps=0, warmdown_fraction=0.5, min_lr=0.1)
    assert lr_scale(by_clock, 40, 40.0) == 1
    assert lr_scale(by_clock, 30, 75.0) == pytest.approx(0.1 + 0.9 * 0.5)
    by_steps = TrainRecipe(iterations=100, seconds=0.0, warmdown_steps=0, warmdown_fraction=0.5)
    assert lr_scale(by_steps, 75, 1.0) == pytest.approx(0.5)


def test_warmup_and_momentum_rise() -> None:
    plan = TrainRecipe(iterations=1000, seconds=0.0, warmup_steps=4, warmdown_steps=0)
    assert [lr_scale(plan, step, 1.0) for step in range(5)] == [0.25, 0.5, 0.75, 1, 1]
    momenta = [muon_momentum(OptimRecipe(), step) for step in (0, 250, 500, 9000)]
    assert momenta == pytest.approx([0.85, 0.90, 0.95, 0.95])


def test_shapes_follow_the_share_of_the_run() -> None:
    schedules = ("train.window_schedule=[[0, 256], [0.5, 1024]]", "train.batch_schedule=[[0, 131072], [0.25, 524288]]")
    recipe = load_recipe("baseline", [*schedules, "train.iterations=100", "train.seconds=0"])
    assert Recipe.from_dict(recipe.to_dict()) == recipe
    found = [phase(recipe, step, 1.0) for step in (0, 24, 25, 49, 50, 99)]
    assert [(p.window, p.batch_tokens) for p in found] == [
        *2 * [(256, 131_072)],
        *2 * [(256, 524_288)],
        *2 * [(1024, 524_288)],
    ]
    assert phases(recipe) == list(dict.fromkeys(found))
    late = replace(recipe, data=DataRecipe(late_shards="folder", late_from=0.6))
    assert [step for step in range(100) if phase(late, step, 1.0).late] == [*range(60, 100)]
    assert phases(late) == phases(recipe)  # other rows are no other graph
    plain = load_recipe("baseline")
    assert [(p.window, p.batch_tokens) for p in phases(plain)] == [(1024, 524_288)]


def test_reserved_seconds_end_the_steps_earlier() -> None:
    plan = TrainRecipe(iterations=0, seconds=100.0, reserved_seconds=20.0, warmdown_steps=20)
    assert [over(plan, 5, second) for second in (79.0, 80.0)] == [False, True]
    assert lr_scale(plan, 60, 60.0) == 1
    assert lr_scale(plan, 70, 70.0) == pytest.approx(0.5)
    assert phase(
        Recipe(train=TrainRecipe(loop_from=0.5, iterations=0, seconds=100.0, reserved_seconds=20.0)), 1, 40
    ).loops


def test_weights_at_the_end_are_averaged() -> None:
    plan = TrainRecipe(iterations=100, seconds=0.0, swa_every=10, swa_fraction=0.3)
    assert [step for step in range(1, 101) if averages(plan, step, 1.0)] == [70, 80, 90, 100]
    assert not averages(TrainRecipe(), 20_000, 600.0)
