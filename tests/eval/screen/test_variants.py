"""eval.screen.variants: the files that ship vary the recipe they are for, and errors name the variant."""

from dataclasses import asdict

import pytest

from codec.errors import FormatError
from eval.screen.variants import ABLATIONS, BASE, load_variants
from trainer.optim.schedule import phase
from trainer.recipe import Recipe, load_recipe


@pytest.mark.parametrize("path", sorted(ABLATIONS.glob("*.toml")), ids=lambda path: path.stem)
def test_every_variant_that_ships_differs_from_the_proxy_and_from_the_others(path):
    found = load_variants(path.stem, load_recipe("proxy"))
    assert found[BASE] == load_recipe("proxy")
    assert len(set(found.values())) == len(found) > (4 if path.stem == "learning" else 10)


def test_a_variant_changes_what_it_says_and_nothing_else(tmp_path):
    (tmp_path / "v.toml").write_text("[deep]\nmodel.num_layers = 11\ntrain.qk_gain = 2\n[same]\n")
    base = load_recipe("baseline")
    found = load_variants(str(tmp_path / "v.toml"), base)
    assert list(found) == [BASE, "deep", "same"] and found["same"] == base
    assert (found["deep"].model.num_layers, found["deep"].train.qk_gain) == (11, 2.0)
    changed = asdict(found["deep"])
    changed["model"]["num_layers"], changed["train"]["qk_gain"] = 9, 1.5
    assert Recipe.from_dict(changed) == base


def test_variants_see_as_many_tokens_as_a_recipe_that_is_capped_by_steps(tmp_path):
    text = """
[half]
train.batch_tokens = 524_288
[grows]
train.batch_schedule = [[0, 262_144], [0.25, 524_288], [0.5, 1_048_576]]
[short]
train.batch_tokens = 524_288
train.iterations = 9
"""
    (tmp_path / "v.toml").write_text(text)
    base = load_recipe("baseline", ["train.batch_tokens=1048576", "train.iterations=1000"])
    found = load_variants(str(tmp_path / "v.toml"), base)
    assert found["half"].train.iterations == 2000 and found["short"].train.iterations == 9
    steps = found["grows"].train.iterations
    seen = sum(phase(found["grows"], step, 0.0).batch_tokens for step in range(steps))
    assert abs(seen - 1000 * 1_048_576) <= 1_048_576
    timed = load_recipe("baseline", ["train.iterations=0"])
    assert load_variants(str(tmp_path / "v.toml"), timed)["half"].train.iterations == 0


@pytest.mark.parametrize(
    "text, message",
    [
        ("[base]\n", "'base'"),
        ('["a/b"]\n', "letters, digits"),
        ("deep = 1\n", "deep is '1'"),
        ("[deep]\nlayers = 1\n", "expected entries such as"),
        ("[deep]\nmodel.layers = 1\n", "deep: config: unknown entries"),
        ("[deep]\nmodels.num_layers = 1\n", "deep: recipe: unknown sections"),
        ("[deep]\nmodel.num_layers = 0\n", "deep: config: num_layers is 0"),
        ("[deep\n", "not TOML"),
    ],
)
def test_errors_name_the_variant(tmp_path, text, message):
    (tmp_path / "v.toml").write_text(text)
    with pytest.raises(FormatError, match=message):
        load_variants(str(tmp_path / "v.toml"), Recipe())


def test_a_name_that_is_none():
    with pytest.raises(FormatError, match=r"neither a file nor one of .*screen"):
        load_variants("nothing", Recipe())


def test_only_what_is_wanted_has_to_fit(tmp_path):
    (tmp_path / "v.toml").write_text("[deep]\nmodel.num_layers = 0\n[wide]\nmodel.mlp_mult = 3\n")
    path = str(tmp_path / "v.toml")
    assert list(load_variants(path, Recipe(), ["wide"])) == [BASE, "wide"]
    assert list(load_variants(path, Recipe(), [BASE], also={"wide", "high"})) == [BASE, "wide"]
    with pytest.raises(FormatError, match="deep: config: num_layers is 0"):
        load_variants(path, Recipe(), ["deep"])
    with pytest.raises(FormatError, match="no 'high'; expected some of base, deep, wide"):
        load_variants(path, Recipe(), ["wide", "high"])
