"""artifacts.submission.submission, minify, evaluate: a folder reproduces its score alone and claims only what it
shows.
"""

import ast
import dataclasses
import hashlib
import json
import math
import os
import re
import shutil
import subprocess
import sys
from contextlib import contextmanager
from datetime import date
from itertools import islice

import pytest

import codec
from artifacts.folders import check_sums
from artifacts.provenance import Source, TrainingOnly, save_provenance
from artifacts.share.packs import find
from artifacts.submission import evaluate, minify
from artifacts.submission.ledger import UNCHECKED, ledger
from artifacts.submission.significance import Record
from artifacts.submission.submission import TEXT, Author, load_run, submit
from codec.console import CheckFailed
from codec.errors import CodecError, FormatError, MismatchError
from codec.run_folder import PACK
from codec.text.documents import MODELLED
from codec.text.policy import Adaptation
from eval.proof.prove import prove
from eval.proof.saved import save_proof
from tests.support import proofs
from tests.support.families import FAMILIES, byte_pairs, family_weights
from tests.support.helpers import PLAIN, ROOT, random_weights
from trainer.data.prepare import prepare
from trainer.data.sample import sp1024, val_documents
from trainer.recipe import Recipe
from underpar.cli import main

AUTHOR = Author("A. Uthor", "author")


def make_run(folder, blob, documents):
    """A run folder as `underpar prove --save --keep` leaves it."""
    proof = prove(blob, documents, keep=folder / TEXT)
    assert proof.ok
    save_proof(folder, blob, codec.open(blob), documents, proof)
    return folder


@pytest.fixture(scope="module")
def documents():
    """The three shortest of the first validation documents of the sample."""
    return sorted(islice(val_documents(), 20), key=len)[:3]


@pytest.fixture(scope="module")
def run(tmp_path_factory, documents):
    """The shipped pack's, with a log and the recipe of a run."""
    folder = make_run(tmp_path_factory.mktemp("runs") / "small", find("small").read_bytes(), documents)
    (folder / "train.log").write_text("step:1/1 train_loss:7.6\n")
    (folder / "recipe.json").write_text(json.dumps(Recipe().to_dict()))
    return folder


@pytest.fixture(scope="module")
def tiny(tmp_path_factory, documents):
    """Three runs of three seeds, whose models are nearly equal."""
    folders = []
    for seed in range(3):
        weights = {n: t * (0.1 if t.ndim == 2 else 1) for n, t in random_weights(PLAIN, seed).items()}
        blob = codec.compress(weights, PLAIN, sp1024())
        folders.append(make_run(tmp_path_factory.mktemp("runs") / str(seed), blob, documents[:1]))
        recipe = Recipe()
        recipe = dataclasses.replace(recipe, train=dataclasses.replace(recipe.train, seed=seed))
        (folders[-1] / "recipe.json").write_text(json.dumps(recipe.to_dict()))
    return folders


def scores(runs):
    return [json.loads((run / "proof.json").read_bytes())["bpb_canonical"] for run in runs]


def set_proof(folder, **values):
    proof = json.loads((folder / "proof.json").read_bytes())
    (folder / "proof.json").write_text(json.dumps({**proof, **values}))


@pytest.fixture(scope="module")
def submission(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("out") / "submission"
    submit([run], folder, "Small", AUTHOR, day=date(2026, 1, 2))
    return folder


def alone(folder, tmp_path, *words):
    """Run evaluate.py of a copy with an empty home, an empty environment and, where permitted, no network."""
    copy, home = tmp_path / "copy", tmp_path / "home"
    home.mkdir()
    if not copy.exists():
        shutil.copytree(folder, copy)
    command = [sys.executable, "-B", "evaluate.py", *words]
    if not subprocess.run(["unshare", "-n", "true"], capture_output=True, check=False).returncode:
        command = ["unshare", "-n", *command]
    environment = {"HOME": str(home), "PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, timeout=280, check=False)
    assert not list(home.iterdir())
    return done, copy


@pytest.mark.long
def test_the_score_is_reproduced_from_a_copy_alone(submission, tmp_path, documents):
    text = tmp_path / "text.jsonl"
    text.write_text("".join(json.dumps({"text": document.decode()}) + "\n" for document in documents))
    done, copy = alone(submission, tmp_path, "--docs", str(text))
    told = json.loads(done.stdout or "{}")
    assert (done.returncode, told.get("ok")) == (0, True), done.stderr
    stated = json.loads((copy / "submission.json").read_bytes())
    assert told["val_bpb"] == told["stated_bpb"] == stated["val_bpb"]
    assert told["documents"] == told["of"] == 3
    assert set(told["checks"]) == {"coded_again_to_the_same_bytes", "decoded_is_your_text", "as_stated"}
    assert (told["differences"], told["not_in_this_folder"]) == ([], [])
    check_sums(copy)  # it leaves nothing behind


@pytest.mark.long
def test_the_folder_trains_and_packs_from_its_recipe(submission, tmp_path):
    copy, data = tmp_path / "copy", tmp_path / "data"
    shutil.copytree(submission, copy)
    (tmp_path / "text.jsonl").write_text("".join(json.dumps({"text": d.decode()}) + "\n" for d in val_documents()))
    prepare([tmp_path / "text.jsonl"], sp1024(), data, val_documents=4)
    recipe = {
        "model": json.loads(dataclasses.replace(PLAIN, vocab_size=1024).to_json()),
        "train": {"iterations": 2, "batch_tokens": 128, "micro_batches": 1, "prime_steps": 0, "warmdown_steps": 1},
    }
    (copy / "recipe.json").write_text(json.dumps(recipe))
    words = ["--shards", data, "--tokenizer", data / "tokenizer.model", "--docs", tmp_path / "text.jsonl"]
    command = [sys.executable, "-B", "train_gpt.py", *words, "--budget", "150000", "-o", tmp_path / "run"]
    environment = {"HOME": str(tmp_path), "PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1"}
    environment["UNDERPAR_CACHE"] = str(tmp_path / "cache")
    done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    blob = (tmp_path / "run" / PACK).read_bytes()
    assert 140_000 < len(blob) <= 150_000
    assert codec.open(blob).config.num_layers == PLAIN.num_layers


@pytest.mark.parametrize("name", ["code/codec/pack/reader.py", "model.pack", "text.upz"])
def test_a_changed_file_is_refused(submission, tmp_path, name):
    copy = tmp_path / "copy"
    shutil.copytree(submission, copy)
    data = bytearray((copy / name).read_bytes())
    data[len(data) // 2] ^= 1
    (copy / name).write_bytes(data)
    done, _ = alone(submission, tmp_path)
    assert done.returncode == 1
    assert f"{name} is not the file that was submitted" in done.stderr
    with pytest.raises(MismatchError, match=re.escape(name)):
        check_sums(copy)


def test_added_source_is_refused(submission, tmp_path):
    shutil.copytree(submission, tmp_path / "copy")
    (tmp_path / "copy" / "code" / "torch.py").write_text("")
    done, _ = alone(submission, tmp_path)
    assert done.returncode == 1
    assert "not part of the submission" in done.stderr


def test_the_folder_is_what_the_challenge_asks_for(submission):
    names = {path.relative_to(submission).as_posix() for path in submission.iterdir()}
    assert names >= {"README.md", "submission.json", "train_gpt.py", "requirements.txt", "train_seed1337.log"}
    told = json.loads((submission / "submission.json").read_bytes())
    needed = {"author", "github_id", "name", "date", "val_bpb", "val_loss", "bytes_total", "bytes_code", "track"}
    assert needed <= set(told)
    assert (told["track"], told["date"], told["record"]) == ("non_record_16mb", "2026-01-02", None)
    page = (submission / "README.md").read_text()
    assert f"{told['val_bpb']:.5f} bits per byte" in page
    assert "No record is claimed" in page
    assert f"{told['bytes_total']:,}" in page


def test_counted_bytes_are_those_of_du(submission):
    told = json.loads((submission / "submission.json").read_bytes())
    counted = [path for path in submission.rglob("*") if path.suffix in (".py", ".pack")]
    lines = subprocess.run(["du", "-cb", *counted], capture_output=True, text=True, check=True).stdout.splitlines()
    assert told["bytes_total"] == int(lines[-1].split()[0])
    assert told["bytes_total"] == ledger(submission).total("challenge").bytes
    everything = sum(path.stat().st_size for path in submission.rglob("*") if path.is_file())
    assert ledger(submission).total("strict").peak_bytes == everything
    assert ledger(submission).total("strict").bytes == everything - (submission / TEXT).stat().st_size
    assert told["bytes_model"] == find("small").stat().st_size


def test_the_folder_passes_sha256sum(submission):
    done = subprocess.run(
        ["sha256sum", "--quiet", "-c", "SHA256SUMS"], cwd=submission, capture_output=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, b"")


def imported_to_decode(folder):
    """Return the modules of our rooms that a real decode of a folder's text imports."""
    code = f"""
import sys, codec
codec.decode(codec.open(open({str(folder / PACK)!r}, "rb").read()), open({str(folder / TEXT)!r}, "rb").read())
print(*(m for m in sys.modules if m.split(".")[0] in ("codec", "trainer", "eval", "artifacts")))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_an_imported_model_is_submitted_with_the_source_that_decodes_it(tmp_path, family):
    """Small weights, so that the model needs fewer bits for short text than zstandard does."""
    config = FAMILIES[family]
    weights = {n: t * (0.02 if t.ndim == 2 else 1) for n, t in family_weights(config).items()}
    blob = codec.compress(weights, config, byte_pairs(config.begin, config.end))
    run = make_run(tmp_path / "run", blob, [b"Some words that the model codes, and then some more of them."])
    told = submit([run], tmp_path / "s", "R", AUTHOR)
    assert told["proof"]["tokens"] > 0
    assert imported_to_decode(tmp_path / "s") <= set(minify.modules())


def test_the_source_holds_every_module_that_a_decoder_imports(submission):
    """Look for what a real decode imports in the folder; a pack's ledger counts the decoder's part."""
    assert imported_to_decode(submission) <= set(minify.modules())
    source = sum(path.stat().st_size for path in minify.modules().values())
    minified = sum(map(len, minify.sources().values()))
    assert minified < 0.7 * source
    assert ledger(submission / PACK).by_role()["code"] == minified


def test_packages_of_extras_that_are_not_installed_are_not_required(monkeypatch):
    owners = {name: own for name, own in minify.packages_distributions().items() if name != "pyarrow"}
    monkeypatch.setattr(minify, "packages_distributions", lambda: owners)
    found = minify.requirements(minify.DECODER + minify.TRAINER)
    assert not any(line.startswith("pyarrow") for line in found)
    assert any(line.startswith("numba==") for line in found)


def test_the_code_of_a_submission_is_the_packs_with_scripts_and_training(submission):
    scripts = sum((submission / name).stat().st_size for name in ("evaluate.py", "train_gpt.py"))
    both = minify.sources(minify.DECODER + minify.TRAINER)
    assert both.items() > minify.sources().items()
    training = sum(map(len, both.values())) - ledger(submission / PACK).by_role()["code"]
    assert ledger(submission).by_role()["code"] == ledger(submission / PACK).by_role()["code"] + training + scripts


def test_minified_source_is_the_same_program():
    for name, source in minify.sources(minify.DECODER + minify.TRAINER).items():
        before = ast.parse((ROOT / name).read_text())
        after = ast.parse(source)
        assert shape(before) == shape(after), name


def shape(tree):
    """A syntax tree without texts that stand alone; a body of nothing else is one `pass`."""
    for node in ast.walk(tree):
        for field in ("body", "orelse", "finalbody"):
            if isinstance(body := getattr(node, field, None), list) and body:
                body[:] = [
                    s for s in body if not (isinstance(s, ast.Expr) and isinstance(getattr(s.value, "value", 0), str))
                ] or [ast.Pass()]
    return ast.dump(tree)


def test_requirements_name_what_is_imported_and_nothing_else(submission):
    lines = (submission / "requirements.txt").read_text().split()
    names = {line.split("==")[0] for line in lines}
    assert {"torch", "numpy", "numba", "sentencepiece", "zstandard"} <= names
    assert not {"huggingface_hub", "matplotlib", "typer", "pytest", "ray"} & names
    assert all(re.fullmatch(r"[\w.-]+==[\d.]+", line) for line in lines)


def record(runs, **values):
    """A record on the text of `runs`, a bit above their scores."""
    size = json.loads((runs[0] / "proof.json").read_bytes())["canonical_bytes"]
    claimed = Record("#1", tuple(score + 1.0 for score in scores(runs)), 3.7, size)
    return dataclasses.replace(claimed, **values)


def test_a_record_that_the_figures_show_is_written(tiny, tmp_path):
    assert max(scores(tiny)) - min(scores(tiny)) < 0.2
    told = submit(tiny, tmp_path / "s", "R", AUTHOR, record(tiny))
    assert told["track"] == "10min_16mb"
    assert told["record"]["p"] < 0.01
    assert told["seeds"] == [0, 1, 2]
    assert told["val_bpb"] == pytest.approx(sum(scores(tiny)) / 3)
    assert "p = " in (tmp_path / "s" / "README.md").read_text()


@pytest.mark.parametrize(
    "runs, values, why",
    [
        (3, {"bpb": (1.0, 1.01)}, "p = "),
        (2, {}, "2 runs"),
        (3, {"text_bytes": 151_080_891}, "#1 on 151,080,891"),
    ],
)
def test_a_record_that_they_do_not_show_is_refused(tiny, tmp_path, runs, values, why):
    with pytest.raises(CheckFailed, match=why):
        submit(tiny[:runs], tmp_path / "s", "R", AUTHOR, record(tiny, **values))
    assert not list(tmp_path.iterdir())


FIGURES = {
    **{"bpb_canonical": 0.5, "bpb_coded": 0.5, "bpb_raw": 0.5, "bpb_exact": 0.5, "bpb_ideal": 0.5, "tokens": 10**6},
    **{"canonical_bytes": 10**6, "text_bytes": 10**6, "payload_bytes": 7, "archive_bytes": 1, "framing_bytes": 1},
    **{"pack_bytes": 1, "documents": 2, "stored": 5, "adaptation": "recall", "sha256": "other"},
}


def test_a_proof_that_states_what_is_not_found_is_refused(tiny, tmp_path):
    """Every figure that a submission states, changed alone."""
    copy = tmp_path / "run"
    shutil.copytree(tiny[0], copy)
    load_run(copy)
    set_proof(copy, **FIGURES)
    with pytest.raises(CheckFailed, match="its proof is not of its text") as raised:
        submit([copy], tmp_path / "s", "R", AUTHOR)
    for name, value in FIGURES.items():
        assert f"{name}: {value} stated" in str(raised.value)
    assert not (tmp_path / "s").exists()


def test_a_folder_that_states_what_is_not_found_fails(submission, tmp_path, monkeypatch):
    """Every stated figure of a finished submission doctored alone, with sums that fit."""
    copy = tmp_path / "copy"
    shutil.copytree(submission, copy)
    monkeypatch.setattr(evaluate, "HERE", copy)
    found = evaluate.reproduce((copy / PACK).read_bytes(), (copy / TEXT).read_bytes())
    monkeypatch.setattr(evaluate, "reproduce", lambda *_: found)  # once is enough
    assert evaluate.evaluate(None, None)["ok"]
    for file, doctored in (
        ("proof.json", {**FIGURES, "val_loss": 0.5, "bpb_float": 1.0}),
        (
            "submission.json",
            {"val_bpb": 0.5, "val_loss": 0.5, "bytes_total": 5, "bytes_code": 5, "bytes_model": 5, "val_bpb_std": 1.0}
            | {"seed_results": {"1337": {"val_loss": 1.0, "val_bpb": 0.5, "artifact_bytes": 1}}, "proof": {}},
        ),
    ):
        honest = (copy / file).read_bytes()
        for name, value in doctored.items():
            (copy / file).write_text(json.dumps({**json.loads(honest), name: value}))
            told = evaluate.evaluate(None, None)
            assert not told["ok"], (file, name)
            assert name in told["differences"][0]
        (copy / file).write_bytes(honest)
    page = (copy / "README.md").read_text()
    (copy / "README.md").write_text(page.replace("bits per byte**", "bits per bite**"))
    assert not evaluate.evaluate(None, None)["ok"]


def test_a_part_of_the_documents_does_not_check_the_claim(submission, tmp_path, monkeypatch, documents):
    copy = tmp_path / "copy"
    shutil.copytree(submission, copy)
    monkeypatch.setattr(evaluate, "HERE", copy)

    def state(values, **files):
        for name in ("proof.json", "submission.json"):
            honest = json.loads((submission / name).read_bytes())
            (copy / name).write_text(json.dumps({**honest, **files.get(name.removesuffix(".json"), {})}))
        (copy / "README.md").write_text(f"**{values:.5f} bits per byte**")

    proof = json.loads((submission / "proof.json").read_bytes())
    state(proof["bpb_canonical"])
    told = evaluate.evaluate(1, None)
    assert (told["ok"], told["whole"], told["checks"]["as_stated"], told["differences"]) == (None, False, None, [])
    assert told["claim"] == "not checked: the first 1 documents alone; the claim is about 3"
    own = codec.encode(codec.open((copy / PACK).read_bytes()), documents[:1])
    assert told["archive_bytes"] == len(own) == told["payload_bytes"] + told["framing_bytes"]
    assert told["bpb_raw"] == 8 * len(own) / len(documents[0])
    state(proof["bpb_canonical"], submission={"val_bpb": 1.1})  # against the proof beside it
    told = evaluate.evaluate(1, None)
    assert (told["ok"], told["checks"]["as_stated"]) == (False, False)
    assert told["differences"][0].startswith("submission.json, val_bpb: 1.1 stated")
    for lie in ({"documents": 1}, {"archive_bytes": 1}, {"pack_bytes": 1}, {"val_loss": "left out"}):
        name = next(iter(lie))
        state(proof["bpb_canonical"], proof=lie)
        if lie[name] == "left out":
            (copy / "proof.json").write_text(json.dumps({n: v for n, v in proof.items() if n != name}))
        assert evaluate.evaluate(1, None)["differences"][0].startswith(f"{name}: ")
    other = {**proof, "bpb_canonical": 1.1}  # alike everywhere: only all documents tell
    seeds = {"1337": {"val_loss": proof["val_loss"], "val_bpb": 1.1, "artifact_bytes": proof["pack_bytes"]}}
    state(1.1, proof=other, submission={"val_bpb": 1.1, "proof": other, "seed_results": seeds})
    assert evaluate.evaluate(1, None)["ok"] is None
    assert evaluate.evaluate(3, None)["ok"] is False


def test_the_script_says_what_it_does_and_that_a_part_is_no_check(submission, monkeypatch, capsys):
    """The run of the script with the code that is imported here."""
    shown = []

    @contextmanager
    def progress(what, total, unit=""):
        amounts = []
        yield amounts.append
        shown.append((what, total, sum(amounts)))

    monkeypatch.setattr("codec.console.progress", progress)
    monkeypatch.setattr(evaluate, "HERE", submission)
    monkeypatch.setattr(evaluate, "use_own_code", lambda: None)
    with pytest.raises(SystemExit) as ended:
        evaluate.main(["--documents", "1"])
    out, err = capsys.readouterr()
    assert (ended.value.code, json.loads(out)["ok"]) == (1, None)
    assert "decoding text.upz with model.pack" in err
    assert "the claim was not checked: the first 1 documents alone; the claim is about 3; leave out --documents" in err
    assert [what for what, _, _ in shown] == [
        "opening the pack",
        "decoding 1 of 3 documents",
        "coding 1 of 3 documents again",
    ]
    for _, total, amount in shown[1:]:
        assert 0 < amount == pytest.approx(total, abs=20)  # a record has a head beside its payload
    with pytest.raises(SystemExit) as ended:
        evaluate.main(["--documents", "0"])
    assert ended.value.code == 2
    assert "expected 1 or more" in capsys.readouterr().err


def test_a_score_with_recall_is_reproduced(documents, tmp_path):
    blob = find("small").read_bytes()
    proof = prove(blob, documents[:1], keep=tmp_path / TEXT, adaptation=Adaptation.RECALL)
    found = evaluate.reproduce(blob, (tmp_path / TEXT).read_bytes())
    assert found.same_bytes
    assert found.figures["adaptation"] == "recall"
    assert found.figures["bpb_canonical"] == proof.bpb_canonical
    assert evaluate.differences(proof.to_json() | {"val_loss": found.figures["val_loss"]}, found.figures) == []


def test_the_loss_is_of_what_the_model_coded():
    """Some documents are stored: neither their bytes nor their bits are the model's."""
    found = evaluate.reproduce(proofs.blob(), codec.encode(proofs.pack(), proofs.DOCUMENTS)).figures
    modelled = [record for record in proofs.proof().records if record.mode == MODELLED]
    assert 0 < found["stored"] < len(proofs.DOCUMENTS)
    bits = 8 * sum(len(record.payload) for record in modelled)
    assert found["val_loss"] == pytest.approx(bits * math.log(2) / sum(record.tokens for record in modelled))
    assert found["val_loss"] < math.log(sp1024().vocab_size) * 1.1
    stated = proofs.proof().to_json() | {"val_loss": found["val_loss"]}
    assert evaluate.differences(stated, found) == []


def test_a_run_that_is_another_run_again_is_no_seed(tiny, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(tiny[0], copy)
    (copy / "recipe.json").unlink()
    with pytest.raises(MismatchError, match="have the same pack"):
        submit([tiny[0], copy], tmp_path / "s", "R", AUTHOR)


def test_too_many_bytes_are_refused(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("artifacts.submission.ledger.LIMIT", 100_000)
    with pytest.raises(CheckFailed, match="bytes count toward"):
        submit(tiny[:1], tmp_path / "s", "R", AUTHOR)
    assert not list(tmp_path.iterdir())


def test_what_is_missing_or_of_another_proof_is_named(tiny, tmp_path):
    copy = tmp_path / "run"

    def fresh(**values):
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(tiny[0], copy)
        set_proof(copy, **values)

    def refused(error, why):
        with pytest.raises(error, match=why):
            submit([copy], tmp_path / "s", "R", AUTHOR)
        assert not (tmp_path / "s").exists()

    fresh(ok=False)
    refused(CodecError, "does not hold")
    fresh()
    (copy / TEXT).unlink()
    refused(FormatError, "underpar prove .* --keep")
    fresh()
    (copy / PACK).write_bytes(b"other")
    refused(MismatchError, "another pack")
    fresh()
    (copy / "documents.json").unlink()
    refused(FormatError, "no proof in it")
    fresh()
    (copy / "recipe.json").write_text("{}")
    refused(FormatError, "recipe")
    with pytest.raises(MismatchError, match="different seed"):
        submit([tiny[0], tiny[0]], tmp_path / "s", "R", AUTHOR)


def test_an_existing_folder_is_left_alone(tiny, tmp_path):
    (tmp_path / "mine").write_text("precious")
    with pytest.raises(CodecError, match="it exists"):
        submit(tiny[:1], tmp_path, "R", AUTHOR)
    assert (tmp_path / "mine").read_text() == "precious"


def test_training_only_files_travel_with_their_manifest(tiny, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(tiny[0], run)
    (run / "extra.jsonl").write_text('{"text": "more"}\n')
    data = (run / "extra.jsonl").read_bytes()
    entry = TrainingOnly("extra.jsonl", len(data), hashlib.sha256(data).hexdigest(), (Source("mine", "0" * 64),))
    save_provenance(run, (entry,))
    told = submit([run], tmp_path / "s", "R", AUTHOR)
    total = told["ledger"]["totals"]["challenge"]
    assert total["peak_bytes"] == total["bytes"] + len(data)
    page = (tmp_path / "s" / "README.md").read_text()
    assert re.search(rf"Unsettled: Do files count that are deleted .* \({len(data)} bytes\)", page)


def test_the_command(tiny, tmp_path, monkeypatch, capsys):
    words = ["submit", tiny[0], "-o", tmp_path / "s", "--name", "R", "--author", "A", "--github", "a", "--json"]
    monkeypatch.setattr(sys, "argv", ["underpar", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    told = json.loads(capsys.readouterr().out)
    assert told["folder"] == str(tmp_path / "s")
    assert load_run(tiny[0]).seed == 0
    (tmp_path / "record.json").write_text('{"name": "#1", "bpb": [1.0], "bytes_per_token": 3.7, "text_bytes": 1}')
    monkeypatch.setattr(
        sys,
        "argv",
        ["underpar", *map(str, [*words[:3], tmp_path / "r", *words[4:]]), "--record", str(tmp_path / "record.json")],
    )
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    assert "no record" in capsys.readouterr().err


@pytest.mark.long
def test_strict_counts_what_the_text_was_not_decoded_without(submission, tmp_path):
    found = ledger(submission, evaluate=True)
    documents = {e.path: e.bytes for e in ledger(submission).entries if e.role == "document"}
    assert {"README.md", "submission.json", "proof.json", "train.log", "SHA256SUMS"} & set(documents) > {"README.md"}
    assert {e.path for e in found.entries if e.role == "unneeded"} == set(documents)
    assert found.evaluation == f"the text was decoded without {len(documents)} files; {UNCHECKED}"
    everything = ledger(submission).total("strict").bytes
    assert found.total("strict").bytes == everything - sum(documents.values())
    assert found.total("challenge") == ledger(submission).total("challenge")


@pytest.mark.parametrize("name", ["chart.png", "notes.txt", "README.md"])
def test_a_model_by_another_name_counts(submission, tmp_path, name):
    """The script reads the model from a file that has the name of a document."""
    copy = tmp_path / "copy"
    shutil.copytree(submission, copy)
    (copy / PACK).rename(copy / name)
    script = (copy / "evaluate.py").read_text()
    (copy / "evaluate.py").write_text(script.replace('"model.pack"', f'"{name}"'))
    found = ledger(copy, evaluate=True)
    assert found.evaluation.startswith("every file counts: evaluate.py ended with status 1: FileNotFoundError")
    assert found.total("strict").peak_bytes == sum(e.bytes for e in found.entries)


def test_a_script_that_writes_another_text_shows_nothing(submission, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(submission, copy)
    (copy / "evaluate.py").write_text("print('ok')")
    found = ledger(copy, evaluate=True)
    assert "every file counts: evaluate.py wrote a text of SHA-256" in found.evaluation
    assert not [e for e in found.entries if e.role == "unneeded"]
