"""underpar.demo: the whole loop in small, the plan that keeps to its time, and folders that are left alone."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest

from codec.errors import CodecError
from codec.model.config import ModelConfig
from tests.support.helpers import ROOT
from tests.support.proofs import blob, proof
from trainer.data.sample import val_documents
from trainer.recipe import Recipe, TrainRecipe
from underpar.cli import main
from underpar.demo import LEAST_TRAINING, REPORT, RESULT, Plan, choose, demo, first_words, forecast, shorten

TINY = ModelConfig(vocab_size=1024, window=32, num_layers=1, model_dim=16, num_heads=2, num_kv_heads=1)
RECIPE = Recipe(model=TINY, train=TrainRecipe(batch_tokens=256, micro_batches=1, seconds=2, checkpoint_seconds=0))
PLAN = Plan(first_bytes=1200, first_longest=600, proof_bytes=2000, proof_longest=800)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """The demo with a tiny model and little text."""
    return demo(tmp_path_factory.mktemp("demos") / "demo", blob(), RECIPE, val_documents(), PLAN)


def test_it_ends_with_a_table_of_all_sizes(done):
    values = done.to_json()
    assert values["ok"]
    assert json.loads(json.dumps(values)) == values
    names = {row["name"].split(",")[0] for row in values["table"]}
    assert names == {"brotli -11", "gzip -9", "xz -9e", "zstd -19", "the shipped pack", "your pack"}
    assert [row["coded_bytes"] for row in values["table"]] == sorted(row["coded_bytes"] for row in values["table"])
    own = next(row for row in values["table"] if row["name"].startswith("your pack"))
    assert own["coded_bytes"] == done.trained.archive_bytes
    assert own["with_model_bytes"] == done.trained.archive_bytes + done.trained.pack_bytes
    assert all(row["coded_bytes"] == row["with_model_bytes"] for row in values["table"] if row["name"] == "gzip -9")


def test_it_leaves_a_run_folder_with_its_report(done):
    names = {path.name for path in done.folder.iterdir()}
    assert {REPORT, RESULT, "model.safetensors", "model.pack", "proof.json", "documents.json", "recipe.json"} <= names
    assert [path.name for path in done.folder.parent.iterdir()] == ["demo"]
    page = (done.folder / REPORT).read_text()
    assert "underpar<small>demo</small>" in page
    assert "Not here yet" not in page
    assert page.count('<figure role="img"') == 5
    assert json.loads((done.folder / RESULT).read_text()) == done.to_json()


def test_no_other_folder_is_replaced(tmp_path):
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").write_text("mine")
    for folder in (tmp_path / "precious", tmp_path / "precious" / "file"):
        with pytest.raises(CodecError, match="it exists"):
            demo(folder, blob(), RECIPE, val_documents(), PLAN)
    assert (tmp_path / "precious" / "file").read_text() == "mine"


def test_documents_are_chosen_in_order_and_none_is_long():
    documents = [b"a" * 10, b"b" * 50, b"c" * 20, b"d" * 10]
    assert choose(documents, 25, 30) == [b"a" * 10, b"c" * 20]
    assert choose(documents, 1000, 30) == [b"a" * 10, b"c" * 20, b"d" * 10]
    assert choose(documents, 0, 30) == []


def test_the_sample_has_the_text_that_the_plan_asks_for():
    plan, documents = Plan(), list(val_documents())
    assert 20_000 <= sum(map(len, choose(documents, plan.first_bytes, plan.first_longest))) < 25_000
    assert 200 * 1024 <= sum(map(len, choose(documents, plan.proof_bytes, plan.proof_longest))) < 230_000


def test_a_slow_machine_trains_for_less_and_never_for_nothing():
    recipe = replace(RECIPE, train=replace(RECIPE.train, seconds=90.0))
    assert [shorten(recipe, left).train.seconds for left in (500, 60, -100)] == [90, 60, LEAST_TRAINING]
    assert shorten(RECIPE, 0).train.seconds == RECIPE.train.seconds
    slow = replace(proof(), encode_seconds=10.0, decode_seconds=30.0)
    quick = replace(proof(), encode_seconds=1.0, decode_seconds=3.0)
    assert forecast(slow, 10_000, TINY, 5_000) > forecast(quick, 10_000, TINY, 5_000) > 0


def test_the_first_words_are_two_lines_with_the_figures():
    baselines = {"gzip -9": 2000, "brotli -11": 1500}
    lines = first_words(proof(), baselines)
    assert len(lines) == 2
    assert f"{proof().text_bytes:,} bytes" in lines[0]
    assert f"{proof().archive_bytes:,} bytes" in lines[0]
    assert "brotli -11 needs 1,500 bytes" in lines[1]
    assert "did not restore" in first_words(replace(proof(), ok=False), baselines)[0]


def test_threads_that_wait_do_not_spin(monkeypatch, capsys):
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")  # so that the environment is restored behind this test
    monkeypatch.delenv("OMP_WAIT_POLICY")
    monkeypatch.setattr(sys, "argv", ["underpar", "demo", "--help"])
    with pytest.raises(SystemExit):
        main()
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"
    assert "on the sample" in capsys.readouterr().out


@pytest.mark.long
@pytest.mark.timeout(600)
def test_the_demo_in_six_minutes_on_two_cores(tmp_path):
    command = [sys.executable, "-m", "underpar", "demo", "-o", str(tmp_path / "demo"), "--json"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OMP_")}
    ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=500)
    assert ended.returncode == 0, ended.stderr
    told = json.loads(ended.stdout)
    assert told["ok"]
    assert told["seconds"] < 360
    assert told["phases"]["shipped_proof"] < 30
    assert told["trained"]["text_bytes"] >= 200_000
    sizes = {row["name"].split(",")[0]: row["coded_bytes"] for row in told["table"]}
    assert sizes["the shipped pack"] < 0.75 * min(sizes["brotli -11"], sizes["xz -9e"])
    assert sizes["your pack"] < min(sizes["brotli -11"], sizes["xz -9e"])
