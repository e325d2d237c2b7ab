"""artifacts.share.hub, store, bundle, folders: nothing is half published, and nothing wrong is accepted."""

import json
import shutil
import sys

import pytest

import artifacts
import codec
from artifacts.folders import check_sums, read_sums, write_sums
from artifacts.share import hub
from artifacts.share.bundle import Card, check_bundle
from artifacts.share.publish import complete
from artifacts.share.store import Store, default_store
from codec.errors import CodecError, FormatError, MismatchError
from codec.model.checkpoint import save_checkpoint
from codec.model.transformer import MAX_PARAMETERS
from codec.pack.store import is_name
from eval.proof.prove import prove
from eval.proof.saved import save_proof
from tests.support.families import FAMILIES, byte_pairs, family_weights
from tests.support.helpers import PLAIN, random_weights
from tests.support.hub_stub import Stub
from trainer.data.sample import sp1024
from underpar.cli import main

TEXTS = [b"Some words that the model codes.", b"And a few more."]
CARD = Card("mit", "Random numbers of our own, in the public domain.")
NAME = "owner/tiny"
TOKEN = "hf_" + "secret" * 6


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with everything that is published."""
    folder = tmp_path_factory.mktemp("run")
    weights = random_weights(PLAIN)
    blob = codec.compress(weights, PLAIN, sp1024())
    save_proof(folder, blob, codec.open(blob), TEXTS, prove(blob, TEXTS))
    save_checkpoint(folder, weights, PLAIN, sp1024())
    (folder / "recipe.json").write_text("{}")
    (folder / "metrics.jsonl").write_text('{"step": 1}\n')
    return folder


@pytest.fixture
def stub(monkeypatch, tmp_path):
    """A hub of its own, to which the library's requests go at once, without waiting between tries."""
    import huggingface_hub.constants as constants

    found = Stub()
    monkeypatch.setenv("HF_ENDPOINT", found.endpoint)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("UNDERPAR_STORE", str(tmp_path / "store"))
    yield found
    found.server.shutdown()
    found.server.server_close()


@pytest.fixture
def store(stub):
    return default_store()


def head(stub):
    return stub.repositories[NAME].commits[-1]


def published(stub):
    """Whether the hub's model is whole: every file that its sums list, with these sums."""
    import hashlib

    files = head(stub).files
    listed = dict(reversed(line.split("  ")) for line in files["SHA256SUMS"].decode().splitlines())
    return all(hashlib.sha256(files[name]).hexdigest() == digest for name, digest in listed.items())


def test_push_list_pull_and_open(stub, store, run):
    commit = hub.push(NAME, run, CARD)
    assert commit == head(stub).sha
    assert len(stub.repositories[NAME].commits) == 2  # one commit for all of it
    assert [(model.name, model.commit) for model in hub.models()] == [(NAME, commit)]
    assert [model.name for model in hub.models("somebody")] == []
    assert store.packs() == {}
    pack = artifacts.open(NAME)
    assert pack.sha256 == codec.open((run / "model.pack").read_bytes()).sha256
    assert list(store.packs()) == [NAME]
    folder = store.folder(NAME)
    names = {"model.pack", "model.safetensors", "tokenizer.model", "config.json", "recipe.json", "metrics.jsonl"}
    assert set(read_sums(folder)) == names | {"proof.json", "documents.json", "README.md"}
    assert {path.name for path in folder.iterdir()} == {*read_sums(folder), "SHA256SUMS"}
    assert (folder / "model.safetensors").read_bytes() == (run / "model.safetensors").read_bytes()
    before = len(stub.log)
    assert artifacts.open(NAME).sha256 == pack.sha256
    assert len(stub.log) == before  # what is kept is not fetched again
    assert [path.name for path in store.root.iterdir() if path.name.startswith(".")] in ([], [".partial"])


def test_what_was_pulled_is_proved_again(stub, store, run):
    hub.push(NAME, run, CARD)
    folder = hub.pull(NAME, store)
    found = prove((folder / "model.pack").read_bytes(), TEXTS)
    stated = json.loads((folder / "proof.json").read_bytes())
    assert found.ok
    assert (found.sha256, found.archive_bytes, found.bpb_coded) == (
        stated["sha256"],
        stated["archive_bytes"],
        stated["bpb_coded"],
    )


def test_the_card_has_licence_provenance_and_figures(stub, run):
    hub.push(NAME, run, CARD)
    card = head(stub).files["README.md"].decode()
    assert card.startswith('---\nlicense: "mit"\n')
    assert CARD.data in card
    assert f'artifacts.open("{NAME}")' in card
    assert codec.open((run / "model.pack").read_bytes()).sha256 in card


def test_pushing_the_same_again_does_nothing(stub, run):
    first = hub.push(NAME, run, CARD)
    assert hub.push(NAME, run, CARD) == first
    assert len(stub.repositories[NAME].commits) == 2


def test_another_version_replaces_all_of_the_old_one(stub, store, run, tmp_path):
    first = hub.push(NAME, run, CARD)
    smaller = tmp_path / "smaller"
    shutil.copytree(run, smaller)
    for name in ("model.safetensors", "tokenizer.model"):
        (smaller / name).unlink()
    hub.push(NAME, smaller, CARD)
    assert "model.safetensors" not in head(stub).files
    assert ".gitattributes" in head(stub).files  # not ours to delete
    hub.pull(NAME, store)
    assert "model.safetensors" not in read_sums(store.folder(NAME))
    hub.pull(NAME, store, first)
    assert "model.safetensors" in read_sums(store.folder(NAME))


@pytest.mark.parametrize("kind", ["cut", "500"])
@pytest.mark.parametrize(
    "method, path",
    [
        ("POST", "repos/create"),
        ("POST", "preupload"),
        ("POST", "objects/batch"),
        ("PUT", "objects/"),
        ("POST", "/commit/"),
        ("GET", "/api/models/"),
    ],
)
def test_a_push_survives_a_broken_request(stub, run, kind, method, path, monkeypatch):
    monkeypatch.setattr(hub, "PAUSE", 0.0)
    stub.fault(method, path, kind)
    hub.push(NAME, run, CARD)
    assert not stub.faults
    assert published(stub)
    assert len(stub.repositories[NAME].commits) == 2


@pytest.mark.parametrize("path", ["objects/[0-9a-f]{64}", "/commit/"])
@pytest.mark.parametrize("kind", ["cut", "500"])
def test_a_push_that_fails_publishes_nothing_and_the_next_goes_on(stub, run, path, kind, monkeypatch):
    monkeypatch.setattr(hub, "PAUSE", 0.0)
    stub.fault("PUT" if "objects" in path else "POST", path, kind, times=1000)
    with pytest.raises(hub.HubError, match="run the same command again"):
        hub.push(NAME, run, CARD)
    assert list(head(stub).files) == [".gitattributes"]
    stub.faults.clear()
    sent = stub.requests("PUT", "objects")
    there = len(stub.objects)
    hub.push(NAME, run, CARD)
    assert published(stub)
    assert stub.requests("PUT", "objects") - sent == 3 - there  # what had arrived is not sent again


def test_a_commit_whose_answer_is_lost_is_recognised(stub, run, monkeypatch):
    monkeypatch.setattr(hub, "PAUSE", 0.0)
    stub.fault("POST", "/commit/", "lost")
    assert hub.push(NAME, run, CARD) == head(stub).sha
    assert len(stub.repositories[NAME].commits) == 2


def test_a_refusal_is_final_and_names_no_token(stub, run):
    stub.fault("POST", "repos/create", "403")
    with pytest.raises(hub.HubError) as caught:
        hub.push(NAME, run, CARD)
    assert stub.requests("POST", "repos/create") == 1
    assert TOKEN not in str(caught.value)
    assert {token for _, _, token in stub.log} == {f"Bearer {TOKEN}"}


@pytest.mark.parametrize("kind", ["cut", "500"])
@pytest.mark.parametrize("file", ["SHA256SUMS", "model.pack", "proof.json"])
def test_a_pull_survives_a_broken_request(stub, store, run, kind, file, monkeypatch):
    monkeypatch.setattr(hub, "PAUSE", 0.0)
    hub.push(NAME, run, CARD)
    stub.fault("GET", f"resolve/.*/{file}", kind)
    check_bundle(hub.pull(NAME, store))
    assert not stub.faults


def test_a_pull_goes_on_where_the_last_one_broke(stub, store, run, monkeypatch):
    monkeypatch.setattr(hub, "PAUSE", 0.0)
    hub.push(NAME, run, CARD)
    stub.fault("GET", "resolve/.*/tokenizer.model", "500", times=1000)  # the last file
    with pytest.raises(hub.HubError):
        hub.pull(NAME, store)
    assert store.packs() == {}
    stub.faults.clear()
    fetched = stub.requests("GET", "resolve/.*/model.pack")
    hub.pull(NAME, store)
    assert stub.requests("GET", "resolve/.*/model.pack") == fetched
    assert list(store.packs()) == [NAME]


FILES = ["model.pack", "proof.json", "documents.json", "config.json", "model.safetensors", "README.md", "SHA256SUMS"]


@pytest.mark.parametrize("file", FILES)
def test_a_wrong_byte_is_never_accepted(stub, store, run, file):
    hub.push(NAME, run, CARD)
    stub.fault("GET", f"resolve/.*/{file}", "wrong")
    with pytest.raises((MismatchError, FormatError)):
        hub.pull(NAME, store)
    assert not stub.faults
    assert store.packs() == {}
    assert not store.folder(NAME).exists()
    hub.pull(NAME, store)  # the next call fetches it anew
    assert list(store.packs()) == [NAME]


def test_a_wrong_pull_leaves_the_model_that_was_there(stub, store, run):
    hub.push(NAME, run, CARD)
    folder = hub.pull(NAME, store)
    before = read_sums(folder)
    stub.fault("GET", "resolve/.*/model.pack", "wrong")
    with pytest.raises(MismatchError):
        hub.pull(NAME, store)
    assert read_sums(folder) == before
    check_bundle(folder)


def tampered(stub, **files):
    """Replace files on the hub, and the sums with them: what a publisher of ill will could do."""
    import hashlib

    found = head(stub).files
    found.update({name.replace("_", "."): data for name, data in files.items()})
    listed = [name for name in found if name not in ("SHA256SUMS", ".gitattributes")]
    found["SHA256SUMS"] = "".join(f"{hashlib.sha256(found[n]).hexdigest()}  {n}\n" for n in listed).encode()


def test_a_bundle_that_agrees_with_its_sums_alone_is_refused(stub, store, run):
    hub.push(NAME, run, CARD)
    honest = dict(head(stub).files)
    proof = json.loads(honest["proof.json"])
    for change in (
        {"model_pack": b"UPAK nothing of the kind"},
        {"proof_json": json.dumps({**proof, "ok": False}).encode()},
        {"proof_json": json.dumps({**proof, "pack_bytes": 1}).encode()},
        {"documents_json": honest["documents.json"].replace(b'"pack": "', b'"pack": "0')},
        {"config_json": honest["config.json"].replace(b'"num_layers":2', b'"num_layers":3').replace(b": 2,", b": 3,")},
        {"evil_py": b"import os"},
    ):
        head(stub).files.clear()
        head(stub).files.update(honest)
        tampered(stub, **change)
        with pytest.raises(CodecError):
            hub.pull(NAME, store)
        assert store.packs() == {}


def test_a_file_too_large_is_not_fetched(stub, store, run, monkeypatch):
    assert 4 * MAX_PARAMETERS < 0.9 * hub.MAX_BYTES  # the weights of the largest imported model are not too large
    hub.push(NAME, run, CARD)
    monkeypatch.setattr(hub, "MAX_BYTES", 10_000)
    with pytest.raises(MismatchError, match="expected a file of at most 10000"):
        hub.pull(NAME, store)
    assert stub.requests("GET", "resolve/.*/model.pack") == 0


def test_no_such_model(stub, store):
    with pytest.raises(hub.HubError, match="owner/nothing"):
        artifacts.open("owner/nothing")
    with pytest.raises(FormatError, match="neither a file"):
        artifacts.open("nothing")


def test_nothing_unproved_is_published(stub, store, run, tmp_path):
    broken = tmp_path / "run"
    shutil.copytree(run, broken)
    (broken / "model.pack").write_bytes(codec.compress(random_weights(PLAIN, 1), PLAIN, sp1024()))
    with pytest.raises(MismatchError, match="prove it again"):
        hub.push(NAME, broken, CARD)
    (broken / "proof.json").unlink()
    with pytest.raises(FormatError, match="no proof"):
        store.put(NAME, broken, CARD)
    with pytest.raises(CodecError, match="licence"):
        store.put(NAME, run, Card("", "data"))
    assert (stub.log, store.packs()) == ([], {})


def test_a_folder_is_as_good_a_place(stub, store, run):
    folder = store.put(NAME, run, CARD)
    check_bundle(folder)
    again = store.put(NAME, run, CARD)
    assert again == folder
    assert artifacts.find(NAME) == folder / "model.pack"
    assert artifacts.open(NAME).config == PLAIN
    assert stub.log == []
    assert [path.name for path in store.root.iterdir()] == ["owner"]


@pytest.mark.parametrize("family", FAMILIES)
def test_an_imported_model_is_pushed_pulled_and_opened(stub, store, tmp_path, family):
    """Small weights, so that the model needs fewer bits for short text than zstandard does."""
    config = FAMILIES[family]
    weights = {n: t * (0.02 if t.ndim == 2 else 1) for n, t in family_weights(config).items()}
    imported = weights, config, byte_pairs(config.begin, config.end)
    blob = codec.compress(*imported)
    save_checkpoint(tmp_path, *imported)
    (tmp_path / "model.pack").write_bytes(blob)
    save_proof(tmp_path, blob, codec.open(blob), TEXTS, prove(blob, TEXTS))
    check_bundle(store.put("owner/local", tmp_path, CARD))
    hub.push(NAME, tmp_path, CARD)
    assert artifacts.open(NAME).config == config
    assert {"model.safetensors", "tokenizer.model", "config.json"} < set(read_sums(store.folder(NAME)))
    honest = head(stub).files["config.json"]
    tampered(stub, config_json=honest.replace(b'"begin": ', b'"begin": 1'))
    with pytest.raises(CodecError, match="two models"):
        hub.pull(NAME, store)


def test_a_push_that_is_refused_does_nothing_before_and_leaves_nothing(stub, run, tmp_path, monkeypatch, capsys):
    def refused(name, licence, why, *more):
        words = ["hub", "push", run, name, "--licence", licence, "--data", "none", *more]
        monkeypatch.setattr(sys, "argv", ["underpar", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 2
        assert why in capsys.readouterr().err

    text = tmp_path / "text.txt"
    text.write_text("Words.")
    monkeypatch.setattr("artifacts.share.publish.complete", None)  # neither packs nor proves
    for where in ((), ("--hub",)):
        refused("tiny", "mit", "expected owner/name", "--docs", text, *where)
        refused(NAME, " ", "licence or training data is empty", "--docs", text, *where)
    run = tmp_path / "run"
    run.mkdir()
    refused(NAME, "mit", "model.pack")
    assert (stub.log, list((tmp_path / "store").iterdir())) == ([], [])


def test_a_run_fresh_from_training_is_packed_proved_and_published(stub, store, run, tmp_path, monkeypatch, capsys):
    fresh = tmp_path / "fresh"
    save_checkpoint(fresh, random_weights(PLAIN), PLAIN, sp1024())
    (tmp_path / "text.jsonl").write_text("".join(json.dumps({"text": text.decode()}) + "\n" for text in TEXTS))
    words = [
        "hub",
        "push",
        fresh,
        NAME,
        "--licence",
        "mit",
        "--data",
        "none",
        "--docs",
        tmp_path / "text.jsonl",
        "--hub",
    ]
    monkeypatch.setattr(sys, "argv", ["underpar", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    assert published(stub)
    assert artifacts.open(NAME).sha256 == codec.open((fresh / "model.pack").read_bytes()).sha256
    monkeypatch.setattr("artifacts.share.publish.prove", None)  # what is there is not made again
    complete(fresh, TEXTS)


@pytest.mark.parametrize("name", ["", "small", "a/b/c", "../b", "a/..", "a/b--c", "/a/b", "a/.b", "a b/c"])
def test_names_that_are_none(name, tmp_path):
    assert not is_name(name)
    with pytest.raises(FormatError, match="owner/name"):
        Store(tmp_path).folder(name)


@pytest.mark.parametrize("line", ["", "abc  x", "0" * 64 + " x", "0" * 64 + "  /etc/x", "0" * 64 + "  a/../x"])
def test_a_list_of_sums_that_is_none(tmp_path, line):
    (tmp_path / "SHA256SUMS").write_text(line + "\n")
    with pytest.raises(FormatError, match="not a SHA-256"):
        read_sums(tmp_path)


def test_sums_see_what_is_missing_added_or_changed(tmp_path):
    (tmp_path / "a").write_text("1")
    (tmp_path / "b").write_text("2")
    write_sums(tmp_path)
    check_sums(tmp_path)
    (tmp_path / "c").write_text("3")
    with pytest.raises(MismatchError, match="nothing of it"):
        check_sums(tmp_path)
    (tmp_path / "c").unlink()
    (tmp_path / "b").unlink()
    with pytest.raises(MismatchError, match="missing"):
        check_sums(tmp_path)


def test_the_commands(stub, run, monkeypatch, capsys):
    def call(*words):
        monkeypatch.setattr(sys, "argv", ["underpar", "hub", *map(str, words), "--json"])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        assert TOKEN not in out + err
        return ended.value.code or 0, json.loads(out or "{}")

    said = ("--licence", "mit", "--data", "none")
    status, told = call("push", run, NAME, *said, "--hub")
    assert (status, told["commit"]) == (0, head(stub).sha)
    status, told = call("pull", NAME)
    assert (status, told["bytes"]) == (0, (run / "model.pack").stat().st_size)
    status, told = call("push", run, "owner/local", *said)
    assert status == 0
    status, told = call("list", "--hub")
    assert {"record", "small", NAME, "owner/local"} == {pack["name"] for pack in told["packs"]}
    assert [model["name"] for model in told["hub"]] == [NAME]
    assert call("pull", "owner/nothing")[0] == 2
