"""eval.ablate.ablate and what is made of it: points are real files, runs resume, failures cost one point, rows add
up.
"""

import contextlib
import csv
import io
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import codec
from codec.errors import CodecError
from codec.model.checkpoint import load_checkpoint, save_checkpoint
from codec.quantization.sensitivity import SensitivityGrid
from codec.quantization.strategies import STRATEGIES
from eval import figures
from eval.ablate import ablate
from eval.ablate import plots as ablate_plots
from eval.ablate import tables as ablate_tables
from eval.ablate.ablate import Measured, Point, make, make_plan, read_points, run_plan
from eval.ablate.peers import PEERS, Peer
from eval.ablate.subject import load_subject
from tests.support.helpers import EVERY_OPTION, lossless_tokenizer, random_weights
from trainer.data.sample import val_documents
from underpar.cli import main
from underpar.commands import app


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    save_checkpoint(folder, random_weights(EVERY_OPTION), EVERY_OPTION, lossless_tokenizer())
    return folder


@pytest.fixture(scope="module")
def docs(tmp_path_factory):
    path = tmp_path_factory.mktemp("docs") / "val.jsonl"
    path.write_text("".join(json.dumps({"text": d.decode()}) + "\n" for d in list(val_documents())[:3]))
    return path


@pytest.fixture(scope="module")
def result(run, docs, tmp_path_factory):
    """The command's output and folder."""
    out = tmp_path_factory.mktemp("out")
    return json.loads(_command(run, docs, out, "--processes", "1")), out


def _command(run, docs, out, *more):
    text = io.StringIO()
    arguments = ["ablate", str(run), "--docs", str(docs), "-o", str(out), "--tokens", "256", "--json", *more]
    arguments += ["--strategies", "int6,nearest,steps", "--rates", "4,5", "--peers", "int6+zstd,sdclip+brotli"]
    arguments += ["--scales", "1,1.6", "--embeddings", "1,0.5"]
    with contextlib.redirect_stdout(text):
        app(arguments, standalone_mode=False)
    return text.getvalue().splitlines()[-1]


def test_a_plan_is_every_combination_once():
    plan = make_plan(["steps", "int6"], [1.0, 2.0], [3.0], [1000], ["sdclip+brotli", "zipnn"], [1.0, 1.3], [1.0, 0.5])
    assert len(plan) == len(set(plan)) == 4 + 1 + 4 + 1
    assert Point("strategy", "int6", unit=1.0) in plan  # it has no unit
    assert len({point.key for point in plan}) == len(plan)
    for arguments in (
        (["no"], [], [], [], [], [], []),
        ([], [], [], [], ["no"], [], []),
        ([], [0.0], [], [], [], [], []),
    ):
        with pytest.raises(CodecError, match="expected"):
            make_plan(*arguments)


def test_a_point_is_the_file_that_compress_writes(run):
    subject, checkpoint = load_subject(run), load_checkpoint(run)
    made, state = make(subject, Point("strategy", "steps", unit=0.01))
    blob = codec.compress(
        checkpoint.state_dict, EVERY_OPTION, checkpoint.tokenizer, quantizer=STRATEGIES["steps"](0.01)
    )
    assert made.bytes == len(blob)
    assert all(torch.equal(state[name], tensor) for name, tensor in codec.decompress(blob).items())
    assert made.relative_error == subject.relative_error(state) > 0
    peer, _ = make(subject, Point("peer", "sdclip+brotli", scale=1.3, embedding=0.5))
    assert peer.bytes == PEERS["sdclip+brotli"].run(subject, 1.3, 0.5).bytes + subject.companions
    assert subject.companions > 1000


def test_packs_at_hand_are_points_of_a_curve(run, tmp_path):
    """They are measured as those that the sweep makes, and are rungs of the ladder under the caller's name."""
    subject, files = load_subject(run), []
    for unit in (0.01, 0.02):
        made, _ = make(subject, Point("strategy", "steps", unit=unit))
        files.append(tmp_path / f"{unit}.pack")
        files[-1].write_bytes(
            codec.compress(subject.state, EVERY_OPTION, subject.tokenizer, quantizer=SensitivityGrid(unit, 0))
        )
    plan = make_plan([], [], [], [], ["int6+zstd"], [1.0, 2.0], [1.0], [("mine", file) for file in files])
    assert len({point.key for point in plan}) == len(plan) == 4
    outcome = run_plan(run, plan, tmp_path / "out", None, 1)
    assert not outcome.failed and [p.bytes for p in outcome.points[:2]] == [file.stat().st_size for file in files]
    assert outcome.points[1].bytes == made.bytes and outcome.points[1].relative_error == made.relative_error
    assert {row["strategy"] for row in ablate_tables.equal_distortion(outcome.points)} == {"mine"}
    for name in ("steps", "int6+zstd", ""):
        with pytest.raises(CodecError, match="expected a name"):
            make_plan([], [], [], [], [], [], [], [(name, files[0])])
    (tmp_path / "other.pack").write_bytes(codec.compress({"w": torch.ones(64, 64)}))
    plan = make_plan([], [], [], [], [], [], [], [("other", tmp_path / "other.pack")])
    assert "a pack of another model" in run_plan(run, plan, tmp_path / "more", None, 1).failed[plan[0].key]
    with pytest.raises(CodecError, match="expected NAME=FILE"):
        app(["ablate", str(run), "-o", str(tmp_path / "no"), "--packs", "mine"], standalone_mode=False)


@pytest.mark.parametrize("name", ["steps", "nearest", "trellis8"])
def test_rates_are_about_met(run, name):
    subject = load_subject(run)
    size = make(subject, Point("strategy", name, rate=6.0))[0].bytes - subject.companions
    assert 5 < 8 * size / subject.parameters < 7.5


def test_budgets_are_kept(run):
    assert 7_000 < make(load_subject(run), Point("strategy", "steps", budget=40_000))[0].bytes <= 40_000


def test_the_command_writes_all_that_it_says(result):
    printed, out = result
    assert printed["skipped"] == printed["failed"] == {}
    names = [point["name"] for point in printed["points"]]
    assert names == ["int6"] + ["nearest"] * 2 + ["steps"] * 2 + ["int6+zstd"] * 4 + ["sdclip+brotli"] * 4
    for point in printed["points"]:
        assert point["kl"] > 0 and point["kl_error"] > 0 and point["bytes"] > 0
        assert point["bits_per_weight"] == pytest.approx(8 * point["bytes"] / printed["parameters"])
        assert point["tax"] == pytest.approx(point["bpb"] - printed["bpb_float"], abs=1e-6)
    stored = json.loads((out / "results.json").read_text())
    assert stored["points"] == printed["points"] and stored["equal_distortion"] == printed["equal_distortion"]
    with (out / "points.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["bytes"]) for row in rows] == [point["bytes"] for point in printed["points"]]
    for name in printed["files"]:
        assert (out / name.rpartition("/")[2]).stat().st_size > 0
    assert {row["bytes"] for row in printed["equal_bytes"]} == {printed["points"][9]["bytes"]}  # sdclip as documented
    assert (out / "rate_kl.svg").exists() and (out / "ladder.png").exists()


def test_ratios_are_those_of_the_points(result):
    printed, _ = result
    rows = [r for r in printed["equal_distortion"] if r["reference"] and r["measure"] == "kl"]
    assert {r["strategy"] for r in rows} == {"nearest", "steps"}
    assert {r["peer"] for r in rows} == {"int6+zstd", "int6+zstd, re-tuned", "sdclip+brotli", "sdclip+brotli, re-tuned"}
    by_key = {(p["name"], p["scale"], p["embedding"]): p for p in printed["points"]}
    for r in rows:
        assert r["ratio"] == pytest.approx(r["strategy_bytes"] / r["peer_bytes"])
        assert 0 < r["ratio_error"] < 0.2
        documented = by_key[r["peer"].partition(",")[0], 1.0, 1.0]
        assert r["level"] == documented["kl"]
        if "re-tuned" not in r["peer"]:
            assert r["peer_bytes"] == pytest.approx(documented["bytes"])
        else:
            assert r["peer_bytes"] <= documented["bytes"] * (1 + 1e-9)


def test_a_run_goes_on_where_it_was(run, docs, result, tmp_path, monkeypatch):
    printed, out = result
    lines = (out / ablate.POINTS).read_text().splitlines(keepends=True)
    (tmp_path / ablate.POINTS).write_text("".join(lines[:-2]) + lines[-2][:50])
    made = []
    monkeypatch.setattr(ablate, "make", lambda subject, point: made.append(point) or make(subject, point))
    again = json.loads(_command(run, docs, tmp_path, "--processes", "1"))
    assert len(made) == 2
    timeless = [[{k: v for k, v in p.items() if "seconds" not in k} for p in r["points"]] for r in (printed, again)]
    assert timeless[0] == timeless[1]
    assert len((tmp_path / ablate.POINTS).read_text().splitlines()) == len(lines)


def test_points_of_another_model_or_text_are_refused(result, tmp_path):
    _, out = result
    with pytest.raises(CodecError, match="another model"):
        read_points(out / ablate.POINTS, "other")
    (tmp_path / "broken").write_text("{}\n")
    with pytest.raises(CodecError, match="not what underpar writes"):
        read_points(tmp_path / "broken", "other")


def test_a_failure_costs_one_point(run, tmp_path, monkeypatch):
    def broken(*_):
        raise ValueError("out of luck")

    monkeypatch.setitem(PEERS, "int6+zstd", Peer(broken))
    monkeypatch.setitem(PEERS, "zipnn", Peer(broken, lambda: "not here", lossless=True))
    plan = make_plan(["int6"], [], [], [], ["int6+zstd", "zipnn"], [1.0], [1.0])
    outcome = run_plan(run, plan, tmp_path, None, 1)
    assert [m.point.name for m in outcome.points] == ["int6"]
    assert list(outcome.failed.values()) == ["ValueError: out of luck"]
    assert list(outcome.skipped.values()) == ["not here"]


def test_other_projects_weights_are_measured_by_squared_error_in_workers(tmp_path):
    """Two processes, no config: the error is all there is."""
    generator = torch.Generator().manual_seed(0)
    weights = {name: torch.randn(64, 96, generator=generator) for name in ("embed", "a", "b")}
    save_file(weights, tmp_path / "other.safetensors")
    plan = make_plan(["steps", "nearest"], [], [3.0, 4.0], [], ["int6+zstd", "sdclip+brotli"], [1.0, 1.5], [1.0])
    outcome = run_plan(tmp_path / "other.safetensors", plan, tmp_path / "out", None, 2)
    assert outcome.failed == {} and [m.point for m in outcome.points] == list(plan)
    rows = ablate_tables.equal_distortion(outcome.points)
    assert rows and {r["measure"] for r in rows} == {"relative_error"} and all(r["ratio_error"] == 0 for r in rows)
    assert set(ablate_plots.pictures(outcome.points)) == {"rate_relative_error", "ladder"}
    size = ablate_tables.equal_bytes(outcome.points, [9000])
    assert all(r["strategy_distortion"] / r["peer_distortion"] == pytest.approx(r["ratio"]) for r in size)


def made_up(name, kind, size, kl, **settings):
    windows = np.full(4, kl / 4)
    point = Point(kind, name, **settings)
    return Measured(point, size, 3.0, 1.0, 1.0, kl, kl, kl / 100, 1.0, kl / 3, kl / 9, list(windows), list(windows / 3))


def example():
    points = [made_up("sdclip+brotli", "peer", 16_000_000, 0.01, scale=1.0, embedding=1.0)]
    points += [made_up("sdclip+brotli", "peer", 14_000_000, 0.02, scale=1.3, embedding=1.0)]
    for n, name in enumerate(("sdclip", "nearest", "steps", "trellis8", "trellis256")):
        points += [made_up(name, "strategy", 12_000_000 - n * 400_000 + k * 1_000_000, 0.02 / 2**k, unit=k + 1.0)
                   for k in range(4)]  # fmt: skip
    return points


def test_pictures_are_the_same_bytes_every_time_and_name_every_curve():
    for name, figure in ablate_plots.pictures(example()).items():
        assert figures.svg(figure) == figures.svg(ablate_plots.pictures(example())[name])
        texts = {text.get_text() for axes in figure.axes for text in (*axes.texts, *axes.get_yticklabels())}
        for strategy in ("sdclip", "nearest", "steps", "trellis8", "trellis256", "sdclip+brotli"):
            assert strategy in texts, name


def test_a_ladder_says_bytes_and_steps():
    figure = ablate_plots.ladder(example())
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert "16.000 MB" in texts
    assert any("13.000 MB · −18.75 %" in text for text in texts)
    assert any("step −2.50 %" in text for text in texts)
    assert ablate_plots.ladder(example()[2:]) is None


def test_a_tax_below_zero_is_left_out_of_its_curve():
    points = example()
    points[2] = replace(points[2], tax=-0.001)
    assert len(ablate_tables.strategy_curves(points, "tax")["sdclip"].samples) == 3
    assert len(ablate_tables.strategy_curves(points, "kl")["sdclip"].samples) == 4


@pytest.mark.parametrize("arguments, message", [
    (["--rates", "x"], "expected numbers"),
    (["--strategies", "no"], "expected one of"),
    (["--strategies", "", "--peers", ""], "nothing to measure"),
    ([], "pass a text with --docs"),
])  # fmt: skip
def test_bad_input_exits_with_2(run, tmp_path, capsys, monkeypatch, arguments, message):
    monkeypatch.setattr("sys.argv", ["underpar", "ablate", str(run), "-o", str(tmp_path), *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2 and message in capsys.readouterr().err.replace("\n", " ")
