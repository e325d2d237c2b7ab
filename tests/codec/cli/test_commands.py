"""codec.cli.pack and codec.cli.text: pack, unpack, inspect, encode, decode, as a person or a script calls them."""

import json
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import codec
from codec.archive.journal import Journal
from codec.model.checkpoint import save_checkpoint
from tests.support.helpers import PLAIN, random_weights, tiny_blob
from trainer.data.sample import sp1024
from underpar.cli import main

TEXT = "Ein Text mit Zeilen,\nLücken  und ▁ Zeichen.\n".encode() * 6


class Call:
    """`call(words...)` runs a command here; `call.json` parses its one JSON object, `call.refused` its refusal."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
        self.monkeypatch, self.capsys = monkeypatch, capsys

    def __call__(self, *words: object) -> tuple[int, str, str]:
        self.monkeypatch.setattr(sys, "argv", ["underpar", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = self.capsys.readouterr()
        return int(ended.value.code or 0), out, err

    def json(self, *words: object) -> dict[str, Any]:
        status, out, err = self(*words, "--json")
        assert (status, out.count("\n")) == (0, 1), err
        return json.loads(out)

    def refused(self, *words: object) -> str:
        """The one line on stderr of a command that refuses its input."""
        status, out, err = self(*words)
        assert (status, out, err.count("\n")) == (2, "", 1)
        assert err.startswith("underpar: ")
        return err


@pytest.fixture
def call(monkeypatch, capsys) -> Call:
    return Call(monkeypatch, capsys)


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder with run/ (a checkpoint), m.pack, text.txt and text.upz."""
    save_checkpoint(tmp_path / "run", random_weights(PLAIN), PLAIN, sp1024())
    (tmp_path / "m.pack").write_bytes(tiny_blob(PLAIN))
    (tmp_path / "text.txt").write_bytes(TEXT)
    packed = codec.encode(codec.open(tiny_blob(PLAIN)), [TEXT[:100], TEXT[100:]])
    (tmp_path / "text.upz").write_bytes(packed)
    return tmp_path


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_pack(call, folder):
    result = call.json("pack", folder / "run", "-o", folder / "new.pack")
    blob = (folder / "new.pack").read_bytes()
    assert blob == tiny_blob(PLAIN)
    weights = random_weights(PLAIN)
    assert result["pack_bytes"] == len(blob)
    assert result["parameters"] == sum(t.numel() for t in weights.values())
    assert result["bits_per_parameter"] == pytest.approx(8 * len(blob) / result["parameters"])
    assert result["seconds"] > 0
    assert {t["name"]: tuple(t["shape"]) for t in result["tensors"]} == {k: tuple(v.shape) for k, v in weights.items()}
    assert all(0 < t["bits_per_weight"] <= 16 and t["bytes"] >= 0 for t in result["tensors"])
    assert sum(t["bytes"] for t in result["tensors"]) < len(blob)


def test_pack_to_a_budget(call, folder):
    full = len(tiny_blob(PLAIN))
    result = call.json("pack", folder / "run", "-o", folder / "new.pack", "--budget", full - 1)
    assert result["pack_bytes"] == (folder / "new.pack").stat().st_size < full
    before = files(folder)
    status, out, err = call("pack", folder / "run", "-o", folder / "other.pack", "--budget", 1000)
    assert (status, out) == (2, "")  # a note that there is no calibration comes before
    assert err.splitlines()[-1].startswith("underpar: budget of 1000 bytes: the smallest pack reached has ")
    assert files(folder) == before


def test_pack_any_safetensors(call, tmp_path):
    save_file({"w": torch.randn(100, 100), "n": torch.arange(4)}, str(tmp_path / "w.safetensors"))
    call.json("pack", tmp_path / "w.safetensors", "-o", tmp_path / "w.pack")
    result = call.json("unpack", tmp_path / "w.pack", "-o", tmp_path / "back.safetensors")
    assert result["parameters"] == 10_004
    assert load_file(str(tmp_path / "back.safetensors"))["n"].tolist() == [0, 1, 2, 3]
    (tmp_path / "text.txt").write_bytes(TEXT)
    assert "weights only" in call.refused(
        "encode", tmp_path / "text.txt", "-o", tmp_path / "a.upz", "-m", tmp_path / "w.pack"
    )
    assert not (tmp_path / "a.upz").exists()


def test_unpack_gives_a_checkpoint_that_packs_to_the_same_bytes(call, folder):
    result = call.json("unpack", folder / "m.pack", "-o", folder / "back" / "model.safetensors")
    assert result["parameters"] == sum(t.numel() for t in random_weights(PLAIN).values())
    state, expected = load_file(result["file"]), codec.decompress(tiny_blob(PLAIN))
    assert all(torch.equal(state[name], expected[name]) for name in expected)
    assert Path(result["tokenizer"]).read_bytes() == sp1024().model
    call.json("pack", folder / "back", "-o", folder / "again.pack")
    assert (folder / "again.pack").read_bytes() == tiny_blob(PLAIN)


def test_inspect(call, folder):
    about = call.json("inspect", folder / "m.pack")
    assert about["pack_bytes"] == len(tiny_blob(PLAIN))
    assert about["sha256"] == codec.open(tiny_blob(PLAIN)).sha256
    assert about["config"]["num_layers"] == 2
    archive = call.json("inspect", folder / "text.upz")
    assert (archive["documents"], archive["pack"]) == (2, about["sha256"])
    for file, words in (("m.pack", ("tok_emb.weight", "bits a weight")), ("text.upz", ("documents", "stored"))):
        status, out, _ = call("inspect", folder / file)
        assert status == 0
        assert all(word in out for word in words)


def test_text_comes_back(call, folder):
    result = call.json("encode", folder / "text.txt", "-o", folder / "a.upz", "--model", folder / "m.pack")
    size = (folder / "a.upz").stat().st_size
    assert (result["documents"], result["text_bytes"], result["archive_bytes"]) == (1, len(TEXT), size)
    assert result["bits_per_byte"] == pytest.approx(8 * size / len(TEXT))
    assert result["tokens"] == 0  # random weights say nothing of it: stored
    assert 0 < result["coding_seconds"] < result["seconds"]
    result = call.json("decode", folder / "a.upz", "-o", folder / "back.txt", "-m", folder / "m.pack")
    assert (result["documents"], result["text_bytes"]) == (1, len(TEXT))
    assert 0 < result["coding_seconds"] < result["seconds"]
    assert (folder / "back.txt").read_bytes() == TEXT


@pytest.mark.parametrize("texts", [["one", "", "two\nlines ☃"], []], ids=len)
def test_json_lines_come_back(call, folder, texts):
    lines = b"".join(json.dumps({"text": t}, ensure_ascii=False).encode() + b"\n" for t in texts)
    (folder / "t.jsonl").write_bytes(lines)
    call.json("encode", folder / "t.jsonl", "-o", folder / "t.upz", "-m", folder / "m.pack")
    call.json("decode", folder / "t.upz", "-o", folder / "back.jsonl", "-m", folder / "m.pack")
    assert (folder / "back.jsonl").read_bytes() == lines
    for number, text in enumerate(texts):
        words = ("-o", folder / "one.txt", "-m", folder / "m.pack", "--document", number)
        assert call.json("decode", folder / "t.upz", *words)["documents"] == 1
        assert (folder / "one.txt").read_bytes() == text.encode()


def test_an_empty_file(call, folder):
    (folder / "empty").write_bytes(b"")
    assert call.json("encode", folder / "empty", "-o", folder / "e.upz", "-m", folder / "m.pack")["text_bytes"] == 0
    call.json("decode", folder / "e.upz", "-o", folder / "back", "-m", folder / "m.pack")
    assert (folder / "back").read_bytes() == b""


def test_a_tree_comes_back(call, folder):
    (folder / "in" / "sub").mkdir(parents=True)
    (folder / "in" / "sub" / "a.jsonl").write_bytes(b"no JSON")
    (folder / "in" / "b").write_bytes(b"\xff\0")
    model = ("-m", folder / "m.pack")
    result = call.json("encode", folder / "in", folder / "text.txt", "-o", folder / "t.upz", *model)
    assert (result["files"], result["documents"], result["text_bytes"]) == (3, 3, 9 + len(TEXT))
    call.json("decode", folder / "t.upz", "-o", folder / "out", *model)
    assert files(folder / "out") == {"sub/a.jsonl", "b", "text.txt"}
    assert (folder / "out" / "b").read_bytes() == b"\xff\0"
    assert "pass the name of a new folder" in call.refused("decode", folder / "t.upz", "-o", folder / "out", *model)
    assert call.json("inspect", folder / "t.upz")["metadata"]["files"][2] == ["text.txt", "file", 1]
    assert "there are two of it" in call.refused("encode", folder / "in", folder / "in", "-o", folder / "new", *model)


def test_appending_and_some_documents(call, folder):
    model = ("-m", folder / "m.pack")
    target = folder / "a.upz"
    call.json("encode", folder / "text.txt", "-o", target, *model)
    before = target.stat().st_size
    (folder / "more.txt").write_bytes(b"more")
    result = call.json("encode", folder / "more.txt", "-o", target, "--append", *model)
    assert result["text_bytes"] == 4
    assert result["bits_per_byte"] == pytest.approx(8 * (target.stat().st_size - before) / 4)
    words = ("--document", 1, "--document", 0, "--document", 1)
    assert call.json("decode", target, "-o", folder / "some", *model, *words)["documents"] == 3
    assert (folder / "some").read_bytes() == b"more" + TEXT + b"more"
    assert "two of it" in call.refused("encode", folder / "more.txt", "-o", target, "--append", *model)
    assert "readable file" in call.refused("encode", folder / "more.txt", "-o", folder / "no.upz", "--append", *model)


def test_standard_input_and_output(call, folder, monkeypatch):
    model = ("-m", folder / "m.pack")
    with (folder / "text.txt").open() as stream:
        monkeypatch.setattr(sys, "stdin", stream)
        assert call.json("encode", "-", "-o", folder / "s.upz", *model)["text_bytes"] == len(TEXT)
    status, out, err = call("decode", folder / "s.upz", "-o", "-", *model)
    assert (status, out, err) == (0, TEXT.decode(), "")
    assert "both want standard output" in call.refused("decode", folder / "s.upz", "-o", "-", *model, "--json")


@pytest.fixture(params=[signal.SIGINT, signal.SIGTERM])
def number(request):
    """A signal that is not ignored, as SIGINT is in what a script starts in the background."""
    before = signal.signal(request.param, signal.default_int_handler)
    yield request.param
    signal.signal(request.param, before)


def test_an_interrupted_encoding_goes_on(call, folder, monkeypatch, number):
    monkeypatch.setattr("codec.archive.encode_files.GROUP_BYTES", {"cpu": 100})
    (folder / "in").mkdir()
    for n in range(10):
        (folder / "in" / str(n)).write_bytes(b"%d words " % n * 20)
    model = ("-m", folder / "m.pack")
    call.json("encode", folder / "in", "-o", folder / "whole.upz", *model)
    plain, committed = Journal.add, []

    def interrupted(journal: Journal, frame: bytes) -> None:
        if len(committed) == 2:
            signal.raise_signal(number)
        plain(journal, frame)
        committed.append(frame)

    with monkeypatch.context() as patched:
        patched.setattr(Journal, "add", interrupted)
        status, _, err = call("encode", folder / "in", "-o", folder / "a.upz", *model)
    assert status == 128 + number
    assert "go on with --resume" in err
    assert not (folder / "a.upz").exists()
    result = call.json("encode", folder / "in", "-o", folder / "a.upz", *model, "--resume")
    groups = len(committed) - 1  # the journal's first frame says what the job is
    assert 1 <= groups < 10
    assert (result["resumed_bytes"], result["text_bytes"]) == (groups * 160, 10 * 160)
    assert (folder / "a.upz").read_bytes() == (folder / "whole.upz").read_bytes()
    assert not (folder / "a.upz.partial").exists()


def damage(path: Path, kind: str) -> None:
    data = path.read_bytes()
    if kind == "truncated":
        data = data[: len(data) // 2]
    elif kind == "flipped":
        data = data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 255]) + data[len(data) // 2 + 1 :]
    elif kind == "future":
        data = data[:4] + b"\x63\x00" + data[6:]
    elif kind == "empty":
        data = b""
    elif kind == "junk":
        data = b"\n[/] [bold]junk[/bold] \x1b[31m" * 9  # must not be read as markup, nor break the line
    path.write_bytes(data)


@pytest.mark.parametrize("kind", ["truncated", "flipped", "future", "empty", "junk"])
def test_damaged_files_leave_one_line_and_no_output(call, folder, kind):
    good = folder / "good.pack"
    good.write_bytes((folder / "m.pack").read_bytes())
    damage(folder / "m.pack", kind)
    damage(folder / "text.upz", kind)
    before = files(folder)
    new = folder / "new"
    messages = [
        call.refused("unpack", folder / "m.pack", "-o", new),
        call.refused("inspect", folder / "m.pack"),
        call.refused("encode", folder / "text.txt", "-o", new, "-m", folder / "m.pack"),
        call.refused("decode", folder / "text.upz", "-o", new, "-m", folder / "m.pack"),
        call.refused("decode", folder / "text.upz", "-o", new, "-m", good),
    ]
    assert files(folder) == before
    if kind == "future":
        assert all("format version 99, this underpar reads" in message for message in messages)


def test_refusals(call, folder):
    other = codec.compress(random_weights(PLAIN, seed=3), PLAIN, sp1024())
    (folder / "other.pack").write_bytes(other)
    (folder / "bad.jsonl").write_bytes(b'{"text": 1}\n')
    before = files(folder)
    decode = ("decode", folder / "text.upz", "-o", folder / "new")
    encode = ("encode", folder / "text.txt", "-o", folder / "new")
    model = ("-m", folder / "m.pack")
    assert "pass the pack it was made with" in call.refused(*decode, "-m", folder / "other.pack")
    assert "holds documents 0 to 1" in call.refused(*decode, *model, "--document", 2)
    assert "holds documents 0 to 1" in call.refused(*decode, *model, "--document", -1)
    assert "expected cpu, or cuda" in call.refused(*encode, *model, "--device", "tpu")
    assert "existing, readable file" in call.refused(*encode, "-m", folder / "none.pack")
    assert "existing, readable file" in call.refused("inspect", folder)
    assert "existing, readable file" in call.refused("encode", folder / "none", "-o", folder / "new", *model)
    assert "line 1" in call.refused("encode", folder / "bad.jsonl", "-o", folder / "new", *model)
    assert "no such file" in call.refused("pack", folder / "nothing", "-o", folder / "new")
    assert "not a safetensors file" in call.refused("pack", folder / "text.txt", "-o", folder / "new")
    assert call("pack", folder / "run")[0] == 2  # typer: no output given
    assert files(folder) == before


def test_an_output_that_exists_survives_a_failure(call, folder):
    target = folder / "precious"
    target.write_bytes(b"precious")
    damage(folder / "text.upz", "flipped")
    call.refused("decode", folder / "text.upz", "-o", target, "-m", folder / "m.pack")
    assert target.read_bytes() == b"precious"


def test_folders_that_cannot_be_written(call, folder):
    message = call.refused("unpack", folder / "m.pack", "-o", folder / "text.txt" / "sub" / "w.safetensors")
    assert "check the path" in message
