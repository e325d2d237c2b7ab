"""codec.cli.pack: pack, unpack, inspect, as a person or a script calls them; refusals of all commands of the room."""

import json
import os
import signal
import sys
import threading
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import codec
from codec.archive.writer import ArchiveWriter
from codec.model.checkpoint import save_checkpoint
from codec.text.solid import coder
from tests.support.helpers import PLAIN, ROOT, random_weights, tiny_blob
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
    with ArchiveWriter(stream := BytesIO(), codec.open(tiny_blob(PLAIN))) as writer:
        writer.append([TEXT[:100], TEXT[100:]], model_only=True)  # random weights would not pay
    packed = stream.getvalue()
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
    assert err.splitlines()[-1].startswith("underpar: budget of 1000 bytes: the smallest pack has ")
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
    state, expected = load_file(result["output"]), codec.decompress(tiny_blob(PLAIN))
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
    assert (archive["documents"], archive["pack"]) == (2, about["sha256"][:16])
    for file, words in (("m.pack", ("tok_emb.weight", "bits a weight")), ("text.upz", ("documents", "stored"))):
        status, out, _ = call("inspect", folder / file)
        assert status == 0
        assert all(word in out for word in words)


def damage(path: Path, kind: str) -> None:
    data = path.read_bytes()
    if kind == "truncated":
        data = data[: len(data) // 2]
    elif kind == "flipped":
        data = data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 255]) + data[len(data) // 2 + 1 :]
    elif kind == "future":
        data = data[:3] + b"\x12" + data[4:] if data[:3] == b"UPZ" else data[:4] + b"\x63\x00" + data[6:]
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
        assert all("format version" in message and "this underpar reads" in message for message in messages)


def test_refusals(call, folder):
    other = codec.compress(random_weights(PLAIN, seed=3), PLAIN, sp1024())
    (folder / "other.pack").write_bytes(other)
    before = files(folder)
    decode = ("decode", folder / "text.upz", "-o", folder / "new")
    encode = ("encode", folder / "text.txt", "-o", folder / "new")
    model = ("-m", folder / "m.pack")
    assert "pass the pack it was made with" in call.refused(*decode, "-m", folder / "other.pack")
    assert "holds documents 0 to 1" in call.refused(*decode, *model, "--document", 2)
    assert "holds documents 0 to 1" in call.refused(*decode, *model, "--document", -1)
    assert "expected cpu, or cuda" in call.refused(*encode, *model, "--device", "tpu")
    assert "neither a file nor one of" in call.refused(*encode, "-m", folder / "none.pack")
    assert "existing, readable file" in call.refused("inspect", folder)
    assert "existing, readable file" in call.refused("encode", folder / "none", "-o", folder / "new", *model)
    assert "no such file" in call.refused("pack", folder / "nothing", "-o", folder / "new")
    assert "expected .safetensors or .bin" in call.refused("pack", folder / "text.txt", "-o", folder / "new")
    assert "pass -o NAME.pack" in call.refused("pack", folder / "run")
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


def test_a_folder_of_shards_travels_with_its_files(call, tmp_path):
    """Patterns, a dry run, a refusal to overwrite, and back into a folder: tensors, dtypes, metadata, config.json."""
    folder, big = tmp_path / "model", torch.randn(64, 100, generator=torch.Generator().manual_seed(3))
    folder.mkdir()
    first, second = {"big": big.bfloat16(), "inv_freq": torch.rand(32).double()}, {"other": big.T.contiguous()}
    save_file(first, folder / "1.safetensors", {"format": "pt"})
    save_file(second, folder / "2.safetensors", {"format": "pt"})
    homes = {**dict.fromkeys(first, "1.safetensors"), **dict.fromkeys(second, "2.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": homes}))
    (folder / "config.json").write_text("{}")
    told = call.json("pack", folder, "--dry-run", "--lossless", "oth*", "--bits", "big=3")
    assert {t["name"]: round(t["bits_per_weight"]) for t in told["tensors"] if t["name"] == "big"} == {"big": 3}
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    told = call.json("pack", folder, "-o", tmp_path / "m.pack", "--lossless", "oth*", "--bits", "big=3")
    assert sum(t["bytes"] for t in told["tensors"]) + told["other_bytes"] == told["pack_bytes"]
    index = (folder / "model.safetensors.index.json").read_bytes()
    assert told["files"] == {"config.json": 2, "model.safetensors.index.json": len(index)}
    assert "--force" in call.refused("pack", folder, "-o", tmp_path / "m.pack")
    assert "no tensor is named like 'x*'" in call.refused("pack", folder, "--dry-run", "--skip", "x*")
    assert "expected PATTERN=N" in call.refused("pack", folder, "--dry-run", "--bits", "big")
    call.json("unpack", tmp_path / "m.pack", "-o", tmp_path / "back")
    assert files(tmp_path / "back") == files(folder)
    found = load_file(tmp_path / "back" / "1.safetensors")
    assert found.keys() == first.keys()
    assert json.loads((tmp_path / "back" / "model.safetensors.index.json").read_text()) == json.loads(index)
    call.json("pack", tmp_path / "back", "-o", tmp_path / "again.pack", "--skip", "big")
    call.json("unpack", tmp_path / "again.pack", "-o", tmp_path / "less")
    assert load_file(tmp_path / "less" / "1.safetensors").keys() == {"inv_freq"}
    assert "big" not in json.loads((tmp_path / "less" / "model.safetensors.index.json").read_text())["weight_map"]
    call.json("unpack", tmp_path / "m.pack", "-o", tmp_path / "one.safetensors")
    assert load_file(tmp_path / "one.safetensors").keys() == {**first, **second}.keys()
    assert torch.equal(load_file(tmp_path / "back" / "2.safetensors")["other"], second["other"])
    assert torch.equal(found["inv_freq"], first["inv_freq"])
    assert found["big"].dtype == torch.bfloat16
    assert (tmp_path / "back" / "config.json").read_text() == "{}"
    assert "--challenge writes one file" in call.refused(
        "unpack", tmp_path / "m.pack", "-o", tmp_path / "b", "--challenge"
    )


def test_errors_beside_a_source(call, folder, tmp_path):
    """Of each tensor and of all, relative to the source's squares; a source that is another model is refused."""
    told = call.json("inspect", folder / "m.pack", "--source", folder / "run")
    state, source = codec.open(folder / "m.pack").state_dict(), random_weights(PLAIN)
    for tensor in told["tensors"]:
        truth = source[tensor["name"]].double()
        error = (state[tensor["name"]].double() - truth).square().sum()
        relative = float(error / truth.square().sum())
        assert tensor["relative_squared_error"] == pytest.approx(relative, rel=1e-6, abs=1e-12)
    assert 0 < told["relative_squared_error"] < 1e-3
    assert sum(t["bytes"] for t in told["tensors"]) + told["other_bytes"] == told["pack_bytes"]
    status, out, _ = call("inspect", folder / "m.pack", "--source", folder / "run")
    assert (status, "squared error" in out) == (0, True)
    save_file({"w": torch.ones(3)}, tmp_path / "other.safetensors")
    assert "the source has none" in call.refused(
        "inspect", folder / "m.pack", "--source", tmp_path / "other.safetensors"
    )
    assert "is for packs" in call.refused("inspect", folder / "text.upz", "--source", folder / "run")


def test_the_error_of_all_leaves_exact_tensors_out(call, tmp_path):
    state = {"w": torch.randn(64, 64, generator=torch.Generator().manual_seed(0)), "seen": torch.tensor(10**9)}
    save_file(state, tmp_path / "w.safetensors")
    call.json("pack", tmp_path / "w.safetensors", "-o", tmp_path / "w.pack", "--bits", "w=3")
    told = call.json("inspect", tmp_path / "w.pack", "--source", tmp_path / "w.safetensors")
    errors = {tensor["name"]: tensor["relative_squared_error"] for tensor in told["tensors"]}
    assert errors["seen"] == 0
    assert told["relative_squared_error"] == pytest.approx(errors["w"])
    assert errors["w"] > 1e-3


def test_a_dry_run_writes_nothing_and_minds_no_output(call, tmp_path):
    save_file({"w": torch.ones(64, 64)}, tmp_path / "w.safetensors")
    (tmp_path / "w.pack").write_bytes(b"here before")
    call.json("pack", tmp_path / "w.safetensors", "-o", tmp_path / "w.pack", "-n")
    assert (tmp_path / "w.pack").read_bytes() == b"here before"


def test_a_pack_to_standard_output(monkeypatch, capsysbinary, tmp_path):
    save_file({"w": torch.ones(3)}, tmp_path / "w.safetensors")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["underpar", "pack", "w.safetensors", "-o", "-"])
    with pytest.raises(SystemExit):
        main()
    assert torch.equal(codec.decompress(capsysbinary.readouterr().out)["w"], torch.ones(3))
    assert files(tmp_path) == {"w.safetensors"}


@pytest.mark.parametrize("value", ["text", '{"a": 1}', "[1]"])
def test_metadata_of_another_project(call, tmp_path, value):
    """An entry `config` that is not ours is metadata as any other, and comes back."""
    save_file({"w": torch.ones(3)}, tmp_path / "w.safetensors", {"config": value})
    call.json("pack", tmp_path / "w.safetensors", "-o", tmp_path / "w.pack")
    assert codec.open(tmp_path / "w.pack").metadata == {"config": value}


class Busy:
    """A function that is at work until the test ends, and in which a signal comes."""

    def __init__(self, number: int):
        self._number, self._gate, self.ended = number, threading.Event(), 0

    def __call__(self, *arguments: object) -> bytes:
        os.kill(os.getpid(), self._number)
        self._gate.wait(60)
        self.ended += 1
        return b""


@pytest.fixture(params=[signal.SIGINT, signal.SIGTERM])
def number(request):
    """A signal that is not ignored, as SIGINT is in what a script starts in the background."""
    before = signal.signal(request.param, signal.SIG_DFL)
    yield request.param
    signal.signal(request.param, before)


def test_an_interrupt_does_not_wait_for_a_block(call, folder, monkeypatch, number):
    (folder / "page").write_bytes((ROOT / "README.md").read_bytes()[:5000])
    monkeypatch.chdir(folder)
    assert call("encode", "page", "-m", "none")[0] == 0
    before = files(folder)
    for words, place, told in (
        (("encode", "page", "-o", "b.upz", "-m", "none"), "compress", "nothing is kept that --resume could go on"),
        (("decode", "page.upz", "-o", "back"), "decompress", "nothing was written"),
    ):
        with monkeypatch.context() as patched:
            patched.setattr(coder, place, busy := Busy(number))
            status, _, err = call(*words)
        assert (status, busy.ended) == (128 + number, 0)
        assert err.startswith(f"underpar: interrupted by {number.name}; {told}")
        busy._gate.set()
    assert files(folder) == before


def page(folder: Path, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """A text in `page` for which context mixing pays."""
    monkeypatch.chdir(folder)
    data = (ROOT / "README.md").read_bytes()[:5000]
    (folder / "page").write_bytes(data)
    return data


def test_a_damaged_archive_is_named_and_salvage_is_advised(call, folder, monkeypatch):
    page(folder, monkeypatch)
    assert call("encode", "page", "-m", "none", "-o", "a b.upz")[0] == 0
    whole = Path("a b.upz").read_bytes()
    advice = "a b.upz: the archive is damaged; fetch it again, or restore what is whole: underpar salvage 'a b.upz' -o"
    for at in (len(whole) // 2, len(whole) - 10):  # a record; the footer
        Path("a b.upz").write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        assert advice in call.refused("decode", "a b.upz", "-t")
        assert advice in call.refused("decode", "a b.upz", "-o", "out")
    for words in (("decode", "-l", "a b.upz"), ("inspect", "a b.upz"), ("merge", "a b.upz", "-o", "m.upz")):
        assert advice in call.refused(*words)
    assert advice in call.refused("encode", "text.txt", "-o", "a b.upz", "--append", "-m", "none")
    Path("a b.upz").write_bytes(whole[: len(whole) // 2])
    assert advice in call.refused("decode", "a b.upz")


def test_what_is_no_archive_is_named_and_the_others_are_decoded(call, folder, monkeypatch):
    data = page(folder, monkeypatch)
    assert call("encode", "page", "-m", "none")[0] == 0
    (folder / "empty.upz").write_bytes(b"")
    (folder / "page").unlink()
    status, out, err = call("decode", "empty.upz", "page.upz")
    assert (status, out) == (2, "")
    assert err == (
        "underpar: empty.upz: begins with b'', expected b'UPZ'; this is not a .upz file\n"
        "underpar: 1 of 2 archives were not decoded\n"
    )
    assert (folder / "page").read_bytes() == data
    assert call("decode", "page.upz", "page.upz", "-t", "-q")[0] == 0
    assert "m.pack: this is a pack, no archive; `underpar unpack`" in call.refused("decode", folder / "m.pack")


def test_packs_are_named_and_folders_become_packs(call, folder, monkeypatch):
    monkeypatch.chdir(folder)
    save_file({"w": torch.eye(128)}, "w.safetensors")
    assert call("pack", "w.safetensors", "-o", "w.pack")[0] == 0
    for words in (("encode", "text.txt", "-o", "x.upz", "-m"), ("prove", "--docs", "text.txt")):
        assert "pack text.upz: begins with" in call.refused(*words, "text.upz")
        assert "pack w.pack: it holds weights only" in call.refused(*words, "w.pack")
    (folder / "hf").mkdir()
    (folder / "hf" / "config.json").write_text("{}")
    for name, advice in (
        ("hf", "a Hugging Face model, expected a pack; make one: underpar import hf -o RUN, then underpar pack RUN -o"),
        ("run", "underpar pack run -o NAME.pack"),
    ):
        assert advice in call.refused("encode", "text.txt", "-m", name)
    (folder / "run" / "model.pack").write_bytes(b"")
    assert "pass run/model.pack" in call.refused("encode", "text.txt", "-m", "run")


def test_salvage_says_that_nothing_was_saved(call, folder, monkeypatch):
    """Files that share a damaged block are lost together, after the block was decoded once."""
    data = page(folder, monkeypatch)
    (folder / "in" / "sub").mkdir(parents=True)
    for n in range(20):
        (folder / "in" / "sub" / str(n)).write_bytes(data[250 * n : 250 * n + 250])
    assert call("encode", "in", "-m", "none")[0] == 0
    packed = bytearray((folder / "in.upz").read_bytes())
    packed[1000] ^= 1
    (folder / "in.upz").write_bytes(packed)
    decoded = []
    plain = coder.decompress
    monkeypatch.setattr(coder, "decompress", lambda *block: decoded.append(1) or plain(*block))
    status, _, err = call("salvage", "in.upz", "-o", "SAVED")
    assert status == 1
    assert err.endswith("underpar: 20 files or records are lost; nothing could be restored, and SAVED is empty\n")
    assert list((folder / "SAVED").iterdir()) == []
    assert len(decoded) == 1


def test_what_the_model_took_part_in(call, folder, monkeypatch):
    data = page(folder, monkeypatch)
    done = call.json("encode", "page", "-m", "none")
    assert (done["model_bytes"], done["tokens"]) == (0, 0)
    out = call("encode", "page", "-m", "none", "-f")[1]
    assert out.count("0, without a model") == 2
    about = call.json("inspect", "page.upz")
    assert (about["model_bytes"], about["bytes"], about["pack"]) == (0, 1, None)
    assert "none: decoding needs no model" in (told := call("inspect", "page.upz")[1])
    assert "bytes (by context mixing alone)" in told
    small = ROOT / "artifacts" / "models" / "small.pack"
    done = call.json("encode", "page", "-m", small, "-o", "model.upz")
    assert done["model_bytes"] == len(data)
    assert len(data) // 8 < done["tokens"] < len(data)
    assert 0 <= done["coding_seconds"] < done["seconds"]
    assert call.json("inspect", "model.upz")["model_bytes"] == len(data)
    assert "the model's own" in call("inspect", "model.upz")[1]
    done = call.json("decode", "model.upz", "-m", small, "-o", "back")
    assert 0 < done["coding_seconds"] < done["seconds"]
