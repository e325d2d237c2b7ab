"""artifacts.submission.ledger, provenance, overlap: every byte has one entry, open questions stay open."""

import hashlib
import json
import re
import subprocess
import sys
from io import BytesIO

import pytest
from hypothesis import given
from hypothesis import strategies as st

import codec
from artifacts.provenance import Source, TrainingOnly, load_provenance, save_provenance
from artifacts.share.packs import find
from artifacts.submission.ledger import LIMIT, ledger, role_of
from artifacts.submission.overlap import Repeat, overlap, shingles
from codec.errors import FormatError, MismatchError
from tests.support.helpers import tiny_blob
from trainer.data.sample import train_documents, val_documents
from underpar.cli import main

FILES = {
    "README.md": b"# A submission\n",
    "submission.json": b"{}",
    "train_gpt.py": b"print('hello')\n",
    "lossless_caps.py": b"pass\n",
    "final_model.int6.ptz": bytes(5000),
    "tokenizers/sp.model": bytes(300),
    "weird.blob": bytes(77),
    "train_seed1.log": b"step:1",
}


@pytest.fixture
def folder(tmp_path):
    for name, content in FILES.items():
        path = tmp_path / "entry" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return tmp_path / "entry"


def digest(data):
    return hashlib.sha256(data).hexdigest()


def training_file(folder, size=1000, path="extra.jsonl"):
    data = (json.dumps({"text": "x" * size}) + "\n").encode()
    (folder / path).write_bytes(data)
    entry = TrainingOnly(path, len(data), digest(data), (Source("somebody's text", digest(b"text")),))
    save_provenance(folder, (entry,))
    return entry


def test_every_file_has_an_entry_with_the_bytes_that_du_tells(folder):
    told = subprocess.run(["du", "-ab", "."], cwd=folder, capture_output=True, text=True, check=True).stdout
    sizes = {name.removeprefix("./"): int(size) for size, name in (line.split("\t") for line in told.splitlines())}
    found = {entry.path: entry.bytes for entry in ledger(folder).entries}
    assert set(found) == set(FILES)
    assert found == {name: sizes[name] for name in found}
    assert {e.path: e.sha256 for e in ledger(folder).entries} == {n: digest(c) for n, c in FILES.items()}


def test_the_challenge_counts_code_and_model_and_strict_every_file(folder):
    found = ledger(folder)
    code, model = len(FILES["train_gpt.py"] + FILES["lossless_caps.py"]), 5000
    assert found.total("challenge").bytes == code + model
    assert found.total("strict").bytes == sum(map(len, FILES.values()))
    assert found.total("challenge").peak_bytes == code + model + 77  # nobody knows what weird.blob is
    assert found.total("strict").unsettled == ()
    assert found.by_role()["document"] == len(b"# A submission\n" + b"{}" + b"step:1")


def test_strict_rules_do_not_believe_names(tmp_path):
    """A script that opens a picture for its model: 60 MB of it, and nothing that is code or model by its name."""
    for name in ("chart.png", "README.bin", "notes.txt", "text.upz", "submission.json"):
        with (tmp_path / name).open("wb") as file:
            file.truncate(20_000_000)
    (tmp_path / "evaluate.py").write_bytes(b"model = open('chart.png', 'rb').read()")
    found = ledger(tmp_path)
    assert found.total("strict").bytes == 5 * 20_000_000 + 38
    assert found.total("strict").fits is False
    assert found.total("challenge").fits is None  # text.upz is no archive


def test_the_coded_text_is_an_open_question_under_strict_rules(tmp_path):
    (tmp_path / "model.pack").write_bytes(tiny_blob())
    with codec.ArchiveWriter(stream := BytesIO(), codec.open(tiny_blob())) as writer:
        writer.append([b"some text"], model_only=True)
    text = stream.getvalue()
    (tmp_path / "anything.bin").write_bytes(text)
    strict = ledger(tmp_path).total("strict")
    assert strict.bytes == len(tiny_blob())
    assert strict.peak_bytes == len(tiny_blob()) + len(text)
    assert ledger(tmp_path).total("challenge").peak_bytes == len(tiny_blob())
    (tmp_path / "model.pack").write_bytes(find("small").read_bytes())  # now it is the text of another pack
    assert ledger(tmp_path).total("strict").unsettled == ()


def test_a_training_set_that_is_deleted_makes_two_numbers(folder):
    before = ledger(folder).total("challenge")
    entry = training_file(folder)
    there = ledger(folder).total("challenge")
    assert (there.bytes, there.peak_bytes) == (before.bytes, before.peak_bytes + entry.bytes)
    (question,) = (question for question in there.unsettled if "847" in question.question)
    assert question.bytes == entry.bytes
    (folder / entry.path).unlink()  # as after training: the peak is what it was
    assert ledger(folder).total("challenge") == there


@pytest.mark.parametrize("model, extra, fits", [(10, 10, True), (LIMIT - 999, 5000, None), (LIMIT + 1, 10, False)])
def test_whether_it_fits_may_depend_on_the_open_question(tmp_path, model, extra, fits):
    with (tmp_path / "m.ptz").open("wb") as file:
        file.truncate(model)
    training_file(tmp_path, extra)
    assert ledger(tmp_path).total("challenge").fits is fits


def test_a_manifest_must_describe_the_file_that_is_there(folder):
    training_file(folder)
    (folder / "extra.jsonl").write_bytes(b"other")
    with pytest.raises(MismatchError, match=r"extra.jsonl has 5 bytes .* the manifest says"):
        ledger(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"path": "/etc/passwd"},
        {"path": "a/../../b"},
        {"path": 3},
        {"bytes": -1},
        {"bytes": 1.5},
        {"sha256": "abc"},
        {"derived_from": []},
        {"derived_from": [{"name": "x"}]},
        {"derived_from": "text"},
    ],
)
def test_a_broken_manifest(tmp_path, change):
    good = {"path": "a", "bytes": 1, "sha256": "0" * 64, "derived_from": [{"name": "n", "sha256": "1" * 64}]}
    (tmp_path / "provenance.json").write_text(json.dumps({"training_only": [good]}))
    assert load_provenance(tmp_path)[0].path == "a"
    (tmp_path / "provenance.json").write_text(json.dumps({"training_only": [{**good, **change}]}))
    with pytest.raises(FormatError, match="provenance"):
        load_provenance(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{}", "[" * 100_000, '{"training_only": 3}'])
def test_a_manifest_that_is_none(tmp_path, text):
    (tmp_path / "provenance.json").write_text(text)
    with pytest.raises(FormatError, match="provenance"):
        ledger(tmp_path)


def test_a_link_would_hide_bytes(folder):
    (folder / "more").symlink_to("/usr")
    with pytest.raises(FormatError, match="not a plain file"):
        ledger(folder)


def test_a_pack_counts_whole_with_the_source_that_decodes_it(tmp_path):
    path = find("small")
    found = ledger(path)
    assert found.entries[0].bytes == path.stat().st_size == found.by_role()["model"]
    assert found.total("challenge").bytes == found.total("strict").bytes == sum(e.bytes for e in found.entries)
    assert 0 < found.tokenizer_bytes < found.entries[0].bytes
    assert 50_000 < found.by_role()["code"] < 500_000


def test_what_is_no_pack_is_said(tmp_path):
    (tmp_path / "x.pack").write_bytes(b"nothing")
    for path in (tmp_path / "x.pack", tmp_path, tmp_path / "none"):
        with pytest.raises(FormatError):
            ledger(path)


@pytest.mark.parametrize(
    "name, role",
    [
        *(("code/codec/pack.py", "code"), ("Model.PTZ", "model"), ("tokenizers/sp.model", "tokenizer")),
        *(
            ("data.bin", "unknown"),
            ("evidence.upz", "unknown"),
            ("LICENSE-MIT", "document"),
            ("config.json", "unknown"),
        ),
    ],
)
def test_roles(name, role):
    assert role_of(name) == role


def test_the_command(folder, monkeypatch, capsys):
    training_file(folder)
    (folder / "extra.jsonl").write_text(json.dumps({"text": "one two three " * 9}) + "\n")
    data = (folder / "extra.jsonl").read_bytes()
    save_provenance(folder, (TrainingOnly("extra.jsonl", len(data), digest(data), (Source("s", "0" * 64),)),))
    (folder / "val.jsonl").write_text(json.dumps({"text": "zero one two three " + "one two three " * 8}) + "\n")
    words = ["underpar", "ledger", str(folder), "--validation", str(folder / "val.jsonl"), "--json"]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1  # the training set repeats the validation text
    told = json.loads(capsys.readouterr().out)
    assert told["overlap"]["extra.jsonl"]["shared"] == 3
    assert told["totals"]["challenge"]["peak_bytes"] > told["totals"]["challenge"]["bytes"]


def test_a_pack_too_large_fails_the_command(tmp_path, monkeypatch, capsys):
    with (tmp_path / "m.ptz").open("wb") as file:
        file.truncate(LIMIT + 1)
    monkeypatch.setattr(sys, "argv", ["underpar", "ledger", str(tmp_path), "--json"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    assert json.loads(capsys.readouterr().out)["totals"]["strict"]["fits"] is False
    (tmp_path / "m.ptz").unlink()
    (tmp_path / "tiny.pack").write_bytes(tiny_blob())
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code


def slow_overlap(text, other, words):
    def runs(document):
        found = re.findall(r"\w+", document.decode("utf-8", "replace").lower())
        return [tuple(found[i : i + words]) for i in range(len(found) - words + 1)]

    known = {run for document in other for run in runs(document)}
    mine = [runs(document) for document in text]
    everything = {run for document in mine for run in document}
    return len(everything), len(everything & known), sum(bool(known & set(document)) for document in mine)


documents = st.lists(st.text("ab ,\n", max_size=40).map(str.encode), max_size=5)


@given(documents, documents, st.integers(1, 4))
def test_overlap_is_what_sets_of_tuples_say(text, other, words):
    found = overlap(text, other, words)
    assert (found.shingles, found.shared, found.repeating_documents) == slow_overlap(text, other, words)
    assert len(found.examples) == min(3, found.repeating_documents)


def test_spacing_case_and_punctuation_hide_nothing():
    words = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen"
    copied = b"Before. " + words.upper().replace(" ", ",\n\t").encode()
    assert overlap([copied], [words.encode()]).shared == 2
    assert overlap([copied], [words.encode()]).examples == [Repeat(0, words.removesuffix(" fourteen"))]
    assert len(shingles(b"too short")) == 0
    assert len(shingles(b"\xff\xfe" + words.encode())) == 2


def test_the_sample_keeps_its_promise():
    found = overlap(train_documents(), val_documents())
    assert found.documents == 1938
    assert found.shared == 0
    assert found.shingles > 500_000
