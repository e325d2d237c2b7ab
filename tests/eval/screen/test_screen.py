"""eval.screen.screen and what is made of it: runs are scored, kept and not repeated, failures cost one run, tests add
up.
"""

import contextlib
import csv
import io
import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import pairwise

import pytest

from codec.console import CheckFailed
from codec.errors import CodecError
from eval import figures
from eval.score.windows import Policy
from eval.screen import plots as screen_plots
from eval.screen import run as screen_run
from eval.screen import screen
from eval.screen import tables as screen_tables
from eval.screen.screen import Outcome, Result, devices, make_plan, make_slots, run_plan
from eval.screen.variants import load_variants
from eval.welch import moments, student_tail, welch
from trainer.data.prepare import encode_documents
from trainer.data.sample import sp1024, train_documents, val_documents
from trainer.data.shards import read_shard, write_shard
from trainer.recipe import Recipe, load_recipe
from underpar.commands import app

RECIPE = """
[model]
window = 16
num_layers = 1
model_dim = 16
num_heads = 2
num_kv_heads = 1

[data]
shards = "{shards}"
tokenizer = "{tokenizer}"

[train]
batch_tokens = 64
micro_batches = 1
iterations = 4
seconds = 0
warmdown_steps = 0
checkpoint_seconds = 0
val_tokens = 200
"""

VARIANTS = """
[wide]
model.mlp_mult = 3

[broken]
data.shards = "nowhere"
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A recipe on shards of a few documents, and variants."""
    folder = tmp_path_factory.mktemp("files")
    for split, documents in (("train", train_documents), ("val", val_documents)):
        write_shard(folder / f"fineweb_{split}_000000.bin", encode_documents(list(documents())[:2], sp1024()))
    (folder / "t.model").write_bytes(sp1024().model)
    (folder / "tiny.toml").write_text(RECIPE.format(shards=folder, tokenizer=folder / "t.model"))
    (folder / "variants.toml").write_text(VARIANTS)
    return folder


@pytest.fixture(scope="module")
def result(files, tmp_path_factory):
    """What the command printed, and its folder; one variant failed."""
    out = tmp_path_factory.mktemp("out")
    with pytest.raises(CheckFailed, match="1 of 3 runs failed: broken/0"):
        _command(files, out)
    return json.loads((out / "results.json").read_text()), out


def _command(files, out, *more, variants=None):
    text = io.StringIO()
    variants = variants or files / "variants.toml"
    arguments = ["screen", str(files / "tiny.toml"), str(variants), "-o", str(out), "--seeds", "1"]
    with contextlib.redirect_stdout(text):
        app([*arguments, "--json", *more], standalone_mode=False)
    return json.loads(text.getvalue().splitlines()[-1])


def test_a_run_is_trained_and_scored_and_a_failure_costs_one(files, result):
    printed, out = result
    assert [v["variant"] for v in printed["variants"]] == ["base", "wide"]
    assert list(printed["failed"]) == ["broken/0"] and "nowhere" in printed["failed"]["broken/0"]
    base, wide = printed["runs"]
    assert (base["steps"], base["train_tokens"]) == (4, 256) and base["parameters"] < wide["parameters"]
    tokens = read_shard(files / "fineweb_val_000000.bin")[: 200 // 16 * 16 + 1]
    text_bytes = len(sp1024().decode(tokens))
    for run in (base, wide):
        journal = [json.loads(line) for line in (out / run["variant"] / "0" / "metrics.jsonl").open()]
        nats = journal[-1]["val_loss"] * (200 // 16 * 16)
        assert run["bpb_flat"] == pytest.approx(nats / math.log(2) / text_bytes, rel=1e-6)
        assert 0 < abs(run["bpb_document"] / run["bpb_flat"] - 1) < 0.1
    assert printed["policy"] == "flat"
    assert printed["variants"][1]["difference"] == wide["bpb_flat"] - base["bpb_flat"]
    with (out / "runs.csv").open() as file:
        assert [float(row["bpb_flat"]) for row in csv.DictReader(file)] == [base["bpb_flat"], wide["bpb_flat"]]
    assert (out / "differences.svg").exists() and (out / "curves.png").exists()


def test_finished_runs_are_not_repeated(files, result, monkeypatch):
    printed, out = result
    monkeypatch.setattr(subprocess, "Popen", None)
    again = _command(files, out, "--only", "wide", "--policy", "document")
    assert again["runs"] == printed["runs"] and again["failed"] == {}
    base, wide = printed["runs"]
    assert again["variants"][1]["difference"] == wide["bpb_document"] - base["bpb_document"]


def test_a_trained_run_without_a_score_is_scored(result, monkeypatch):
    _, out = result
    before = json.loads((out / "wide/0" / screen_run.SCORE).read_text())
    (out / "wide/0" / screen_run.SCORE).unlink()
    monkeypatch.setattr(screen_run, "train", None)
    screen_run.run(Recipe.from_dict(json.loads((out / "wide/0/recipe.json").read_text())), out / "wide/0")
    assert json.loads((out / "wide/0" / screen_run.SCORE).read_text()) == before


def test_runs_of_another_recipe_are_refused(files, result):
    _, out = result
    with pytest.raises(CodecError, match="not the recipe that base/0 has now"):
        _command(files, out, "train.iterations=5")
    with pytest.raises(CodecError, match="expected some of base, wide, broken"):
        _command(files, out, "--only", "narrow")
    with pytest.raises(CodecError, match="val_tokens is 0"):
        make_plan({"base": Recipe()}, 1)


def test_a_plan_gives_every_variant_the_same_seeds():
    base = load_recipe("proxy")
    plan = make_plan({"base": base, "other": replace(base, train=replace(base.train, qk_gain=2.0))}, 2)
    assert [run.name for run in plan] == ["base/0", "other/0", "base/1", "other/1"]
    assert plan[0].recipe == base
    assert [run.recipe.train.seed - base.train.seed for run in plan] == [0, 0, 1, 1]
    assert [run.recipe.data.seed - base.data.seed for run in plan] == [0, 0, 1, 1]


NOTING = "import sys, time; s = time.time(); time.sleep(0.3); open(sys.argv[1], 'a').write(f'{s} {time.time()}\\n')"


@pytest.mark.parametrize("jobs", [None, 4])
def test_each_slot_has_one_run_at_a_time_and_devices_are_dealt_in_turn(tmp_path, monkeypatch, jobs):
    """Processes that note when they were there, in place of training."""

    def start(run, folder, slots, slot):
        folder.mkdir(parents=True)
        (folder / screen.SCORE).write_text(json.dumps(SCORES))
        (folder / "metrics.jsonl").write_text("")
        return subprocess.Popen([sys.executable, "-c", NOTING, str(tmp_path / f"{slots[slot]}.{slot}")])

    monkeypatch.setattr(screen, "_start", start)
    told: list[float] = []
    kept: list[Outcome] = []
    plan = make_plan({"base": load_recipe("proxy")}, 9)
    outcome = run_plan(plan, tmp_path, make_slots(plan, ["2", "5"], jobs), told.append, kept.append)
    assert [r.seed for r in outcome.results] == list(range(9)) and sum(told) == 9
    assert kept[-1] == outcome and not outcome.interrupted
    names = ["2.0", "5.1"] if jobs is None else ["2.0", "5.1", "2.2", "5.3"]
    times = [[tuple(map(float, line.split())) for line in (tmp_path / name).read_text().splitlines()] for name in names]
    assert sum(map(len, times)) == 9 and all(times)
    for spans in times:
        assert all(end <= start for (_, end), (start, _) in pairwise(spans))


def test_runs_that_the_clock_ends_share_no_device():
    plan = make_plan({"base": load_recipe("proxy"), "timed": load_recipe("proxy", ["train.seconds=9"])}, 1)
    assert make_slots(plan, ["0", "1"], 1) == ["0"] and make_slots(plan, ["0", "1"], 2) == ["0", "1"]
    with pytest.raises(CodecError, match="timed is capped by the clock"):
        make_slots(plan, ["0", "1"], 3)


def test_the_recipe_comes_first_and_then_what_compiles_longest():
    proxy = load_recipe("proxy")
    grows = load_recipe("proxy", ["train.window_schedule=[[0, 256], [0.5, 1024]]"])
    plan = make_plan({"base": proxy, "wide": proxy, "grows": grows}, 1, base_seeds=2)
    assert [run.name for run in plan] == ["base/0", "wide/0", "grows/0", "base/1"]
    assert [run.name for run in sorted(plan, key=screen._turn)] == ["base/0", "grows/0", "wide/0", "base/1"]


def test_an_interrupt_ends_the_runs_and_keeps_what_is_done(tmp_path, monkeypatch):
    """A run that is done at once, and others that would take ten minutes; the interrupt comes as the last begins."""
    started = []

    def start(run, folder, slots, slot):
        if run.seed == 0:
            folder.mkdir(parents=True)
            (folder / screen.SCORE).write_text(json.dumps(SCORES))
            (folder / "metrics.jsonl").write_text("")
        started.append(subprocess.Popen([sys.executable, "-c", f"import time; time.sleep({600 * run.seed})"]))
        if run.seed == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return started[-1]

    monkeypatch.setattr(screen, "_start", start)
    outcome = run_plan(make_plan({"base": load_recipe("proxy")}, 4), tmp_path, ["", ""])
    assert [process.returncode for process in started] == [0, -signal.SIGTERM, -signal.SIGTERM]
    assert outcome.interrupted and outcome.failed == {} and [r.seed for r in outcome.results] == [0]


@pytest.mark.long
def test_a_command_that_is_terminated_leaves_results_and_goes_on(files, tmp_path):
    """Three runs share a device; SIGTERM comes once one is done: another never ends by itself."""
    (tmp_path / "variants.toml").write_text("[wide]\nmodel.mlp_mult = 3\n[endless]\ntrain.iterations = 1_000_000\n")
    out = tmp_path / "out"
    command = [sys.executable, "-m", "underpar", "screen", str(files / "tiny.toml"), str(tmp_path / "variants.toml")]
    command += ["-o", str(out), "--seeds", "1", "--jobs", "3", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None and len(list(out.glob("*/*/score.json"))) < 2:
            time.sleep(0.1)
        process.terminate()
        stdout, stderr = process.communicate()
    assert process.returncode == 130 and "interrupted with 1 of 3 runs to go" in stderr
    result = json.loads((out / "results.json").read_text())
    assert result["interrupted"] and [v["variant"] for v in result["variants"]] == ["base", "wide"]
    assert all(run["seconds"] is None for run in result["runs"]) and json.loads(stdout)["runs"] == result["runs"]
    assert (out / "variants.md").read_text().count("\n") == 4 and (out / "curves.svg").exists()
    with pytest.raises(CodecError, match="not the recipe that base/0 has now"):
        _command(files, out, "train.iterations=5", variants=tmp_path / "variants.toml")


def held(files, out):
    """Scored runs, untrained: the recipe's and `wide` with three seeds, `broken` with one."""
    known = load_variants(str(files / "variants.toml"), load_recipe(str(files / "tiny.toml")))
    plan = [run for run in make_plan(known, 3) if run.variant != "broken" or run.seed == 0]
    for n, run in enumerate(plan):
        leave(out / run.name, run.recipe, 1.2 + n * n / 100)
    return plan


def leave(folder, recipe, bpb):
    folder.mkdir(parents=True)
    (folder / "recipe.json").write_text(json.dumps(recipe.to_dict()))
    (folder / screen.SCORE).write_text(json.dumps({**SCORES, "bpb_flat": bpb}))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in JOURNAL))


@pytest.mark.parametrize("call", [["--only", "wide", "--seeds", "3"], ["--only", "base"], [], ["--base-seeds", "2"]])
def test_all_that_the_folder_holds_is_shown_whatever_is_run_last(files, tmp_path, monkeypatch, capsys, call):
    plan = held(files, tmp_path)
    monkeypatch.setattr(subprocess, "Popen", None)
    printed = _command(files, tmp_path, *call)
    shown = [(run["variant"], run["seed"]) for run in printed["runs"]]
    assert shown == [(run.variant, run.seed) for run in plan]
    scores = {name: [r["bpb_flat"] for r in printed["runs"] if r["variant"] == name] for name in ("base", "broken")}
    base, wide, broken = printed["variants"]
    assert [effect["runs"] for effect in (base, wide, broken)] == [3, 3, 1]
    assert broken["difference"] == pytest.approx(scores["broken"][0] - moments(scores["base"])[0])
    error = (moments(scores["base"])[1] * (1 + 1 / 3)) ** 0.5  # Student's test: one run varies as the recipe's do
    assert broken["difference_error"] == pytest.approx(error) and wide["p"] and broken["p"]
    picture = (tmp_path / "differences.svg").read_text()
    assert "wide" in picture and f"{broken['difference_error']:.4f}" in picture
    assert (tmp_path / "runs.csv").read_text().count("\n") == 8 and "left out" not in capsys.readouterr().err


def test_runs_of_other_recipes_are_left_out_by_name(files, tmp_path, monkeypatch, capsys):
    base, *_ = held(files, tmp_path)
    leave(tmp_path / "gone/0", base.recipe, 9.0)  # not in the file of variants
    leave(tmp_path / "wide/3", base.recipe, 9.0)
    leave(tmp_path / "broken/1", base.recipe, 9.0)
    (tmp_path / "broken/1/recipe.json").write_text("{")
    leave(tmp_path / "base/notes", base.recipe, 9.0)  # no run
    monkeypatch.setattr(subprocess, "Popen", None)
    printed = _command(files, tmp_path, "--only", "wide")
    assert [effect["runs"] for effect in printed["variants"]] == [3, 3, 1]
    assert capsys.readouterr().err.splitlines()[-1].endswith(": broken/1, gone/0, wide/3")
    with pytest.raises(CodecError, match="not the recipe that broken/1 has now"):
        _command(files, tmp_path, "--seeds", "2")


def test_an_interrupted_screen_counts_its_own_runs(files, tmp_path, monkeypatch, capsys):
    """Of four that are wanted one is to be run, and is interrupted."""
    held(files, tmp_path)
    (tmp_path / "wide/1" / screen.SCORE).unlink()

    def start(run, folder, slots, slot):
        os.kill(os.getpid(), signal.SIGTERM)
        return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])

    monkeypatch.setattr(screen, "_start", start)
    with pytest.raises(SystemExit):
        _command(files, tmp_path, "--only", "wide", "--seeds", "2")
    assert "interrupted with 1 of 4 runs to go" in capsys.readouterr().err
    assert len(json.loads((tmp_path / "results.json").read_text())["runs"]) == 6


def test_devices_are_the_visible_ones(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert devices() == [""]
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert devices() == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-5")
    assert devices() == ["3", "GPU-5"]


SCORES = {
    "bpb_flat": 1.2,
    "bpb_document": 1.3,
    "parameters": 100,
    "steps": 30,
    "train_tokens": 3000,
    "seconds": 3.0,
}

JOURNAL = [{"step": n, "seconds": n / 10, "train_loss": 3 + 1 / n, "tokens": 100 * n} for n in range(1, 30)]


def made_up(variant, scores):
    found = []
    for seed, bpb in enumerate(scores):
        journal = [{**line, "train_loss": line["train_loss"] + bpb} for line in JOURNAL]
        found.append(Result(variant, seed, **{**SCORES, "bpb_flat": bpb, "bpb_document": 2 * bpb}, metrics=journal))
    return found


SCREEN = [
    *made_up("base", [1.20, 1.21, 1.22]),
    *made_up("better", [1.10, 1.11, 1.13]),
    *made_up("same", [1.20, 1.21, 1.23]),
    *made_up("once", [1.4]),
    *[one for n in range(4) for one in made_up(f"worse{n}", [1.3 + n / 10, 1.31 + n / 10, 1.31 + n / 10])],
]


def test_effects_are_welch_tests_against_the_recipe():
    found = {effect.variant: effect for effect in screen_tables.effects(SCREEN, Policy.FLAT)}
    assert next(iter(found)) == "base" and found["base"].p is None and found["base"].difference == 0
    (mean, variance), (base_mean, base_variance) = moments([1.10, 1.11, 1.13]), moments([1.20, 1.21, 1.22])
    better = found["better"]
    assert better.difference == pytest.approx(mean - base_mean)
    by_document = screen_tables.effects(SCREEN, Policy.DOCUMENT)
    assert by_document[1].difference == pytest.approx(2 * better.difference)
    assert better.bpb_error == pytest.approx((variance / 3) ** 0.5)
    t, degrees = welch(mean - base_mean, (variance, 3), (base_variance, 3))
    assert better.difference / better.difference_error == pytest.approx(t)
    assert better.p == pytest.approx(2 * student_tail(-t, degrees)) and 0 < better.p < 0.01
    assert better.p < better.p_holm <= 7 * better.p
    assert found["same"].p > 0.5 and found["same"].p_holm == found["same"].p
    once = found["once"]  # Student's test: one run varies as the recipe's three do
    assert once.bpb_error is None and once.difference_error == pytest.approx((base_variance * (1 + 1 / 3)) ** 0.5)
    assert once.p == pytest.approx(2 * student_tail(once.difference / once.difference_error, 2))
    assert screen_tables.effects(made_up("better", [1.0]), Policy.FLAT) == []
    alone = screen_tables.effects([*made_up("base", [1.2]), *made_up("better", [1.1])], Policy.FLAT)
    assert alone[1].p is alone[1].p_holm is alone[1].difference_error is None


def test_pictures_are_the_same_bytes_every_time_and_name_the_best_and_the_worst():
    found = screen_plots.pictures(SCREEN, screen_tables.effects(SCREEN, Policy.FLAT))
    again = screen_plots.pictures(SCREEN, screen_tables.effects(SCREEN, Policy.FLAT))
    assert {name: figures.svg(one) for name, one in found.items()} == {
        name: figures.svg(one) for name, one in again.items()
    }
    legend = [text.get_text() for text in found["curves"].legends[0].get_texts()]
    assert legend == ["base", "better", "same", "worse2", "worse3"]
    assert len(found["curves"].axes[0].lines) == 8
    axes = found["differences"].axes[0]
    assert [text.get_text() for text in axes.get_yticklabels()][:2] == ["better", "same"]
    assert any("−0.0967 ± 0.0105 · p" in text.get_text() for text in axes.texts)
    assert screen_plots.pictures([], []) == {}
    empty = {"policy": "flat", "variants": [], "runs": [], "failed": {"a/0": "why"}, "interrupted": False}
    assert screen_tables.summary(Outcome([], {"a/0": "why"}), Policy.FLAT) == empty


def test_times_of_runs_that_shared_a_device_are_left_out():
    shared = [replace(result, seconds=None) for result in SCREEN]
    assert {effect.seconds for effect in screen_tables.effects([*SCREEN, shared[0]], Policy.FLAT)} == {None, 3.0}
    found = screen_tables.effects(shared, Policy.FLAT)
    assert {effect.seconds for effect in found} == {None}
    assert [axes.get_xlabel() for axes in screen_plots.curves(shared, found).axes] == ["tokens"]


def test_the_table_in_markdown_is_sorted():
    text = screen_tables.as_markdown(screen_tables.effects(SCREEN, Policy.FLAT)[:3])
    assert text.splitlines()[:4] == [
        "| variant | runs | bits per byte | difference | p | p (Holm) |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
        "| better | 3 | 1.1133 | −0.0967 ± 0.0105 | 0.0015 | 0.0046 |",
        "| base | 3 | 1.2100 |  |  |  |",
    ]
