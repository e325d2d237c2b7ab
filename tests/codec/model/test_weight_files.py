"""codec.model.weight_files: checkpoints of other projects are read as they are, or refused by name."""

import json

import pytest
import torch
from safetensors.torch import save_file

from codec.errors import FormatError
from codec.model.weight_files import INDEX, PICKLED, open_weights
from codec.run_folder import WEIGHTS

FIRST = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(7)}
SECOND = {"c": torch.ones(4, dtype=torch.bfloat16)}


@pytest.fixture
def sharded(tmp_path):
    """A folder of two shards and their index."""
    save_file(FIRST, tmp_path / "1.safetensors", {"format": "pt"})
    save_file(SECOND, tmp_path / "2.safetensors", {"format": "pt"})
    write_index(tmp_path, {"a": "1.safetensors", "b": "1.safetensors", "c": "2.safetensors"})
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / ".secret.json").write_text("{}")
    return tmp_path


def write_index(folder, homes):
    (folder / INDEX).write_text(json.dumps({"weight_map": homes}))


def equal(found, expected):
    return found.keys() == expected.keys() and all(
        torch.equal(found[name], expected[name]) and found[name].dtype == expected[name].dtype for name in expected
    )


def test_shards_come_with_the_files_beside_them(sharded):
    found = open_weights(sharded)
    assert equal(dict(found.tensors), {**FIRST, **SECOND})
    index = (sharded / INDEX).read_bytes()
    assert (found.metadata, found.beside()) == ({"format": "pt"}, {"config.json": b"{}", INDEX: index})
    assert equal(dict(open_weights(sharded / INDEX).tensors), {**FIRST, **SECOND})


def test_one_shard_is_no_model(tmp_path):
    for name in ("model-00001-of-00002.safetensors", "model-00001-of-00001.safetensors"):
        save_file(FIRST, tmp_path / name)
    assert equal(dict(open_weights(tmp_path / "model-00001-of-00001.safetensors").tensors), FIRST)
    with pytest.raises(FormatError, match=r"one shard of 2; pass the folder"):
        open_weights(tmp_path / "model-00001-of-00002.safetensors")


def test_one_file_of_either_kind(tmp_path):
    save_file(FIRST, tmp_path / WEIGHTS)
    torch.save(FIRST, tmp_path / PICKLED)
    for path in (tmp_path, tmp_path / WEIGHTS, tmp_path / PICKLED):
        assert equal(dict(open_weights(path).tensors), FIRST)
    (tmp_path / WEIGHTS).unlink()
    assert equal(dict(open_weights(tmp_path).tensors), FIRST)


@pytest.mark.parametrize(
    ("homes", "told"),
    [
        ({"a": "1.safetensors", "b": "1.safetensors", "c": "3.safetensors"}, r"shard 3\.safetensors is missing"),
        (
            {"a": "1.safetensors", "b": "2.safetensors", "c": "2.safetensors"},
            r"tensor b is in 1\.safetensors, the index",
        ),
        (
            {"a": "1.safetensors", "b": "1.safetensors", "d": "2.safetensors"},
            r"tensor c is in 2\.safetensors, .*nothing",
        ),
        ({"a": "1.safetensors", "b": "1.safetensors"}, None),
        ({"a": "../1.safetensors"}, "expected a file of the index's folder"),
        ({"a": 5}, "expected a file of the index's folder"),
        ([], "expected JSON with a weight_map"),
        ("x" * (1 << 26), "no model has so much"),
    ],
)
def test_an_index_that_lies(sharded, homes, told):
    write_index(sharded, homes)
    if told is None:  # a shard that nothing names is not of this model
        assert equal(dict(open_weights(sharded).tensors), FIRST)
        return
    with pytest.raises(FormatError, match=told):
        open_weights(sharded)


def test_doubled_tensors_and_doubled_weights(sharded):
    save_file({**SECOND, "a": FIRST["a"]}, sharded / "2.safetensors")
    with pytest.raises(FormatError, match=r"tensor a is in 1\.safetensors and in 2\.safetensors"):
        open_weights(sharded)
    save_file(FIRST, sharded / WEIGHTS)
    with pytest.raises(FormatError, match="remove the one that is out of date"):
        open_weights(sharded)


class Harm:
    """Runs code when it is unpickled, unless nothing but tensors is."""

    def __reduce__(self):
        return print, ("harm",)


def test_what_is_refused(tmp_path, capsys):
    torch.save({"a": Harm()}, tmp_path / "harm.bin")
    torch.save({"model": {"a": torch.ones(2)}, "step": 3}, tmp_path / "nested.pt")
    (tmp_path / "cut.safetensors").write_bytes(b"\xff" * 20)
    (tmp_path / "cut.bin").write_bytes(b"PK")
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    (tmp_path / "lfs.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    (tmp_path / "other").mkdir()
    save_file(FIRST, tmp_path / "other" / "weights.safetensors")
    for name, told in (
        ("harm.bin", r"not a PyTorch file of tensors alone \(it is damaged, or holds objects that could run code\)"),
        ("nested.pt", r"found \['model', 'step'\], expected tensors by name"),
        ("cut.safetensors", "not a safetensors file"),
        ("cut.bin", "not a PyTorch file of tensors alone"),
        ("m.gguf", "`underpar import` reads it"),
        ("none.safetensors", "no such file"),
        ("lfs.safetensors", "a pointer of Git LFS"),
        ("", r"none of model\.safetensors"),
        ("other", r"pass one of the files \['weights\.safetensors'\]"),
    ):
        with pytest.raises(FormatError, match=told):
            open_weights(tmp_path / name)
    assert capsys.readouterr().out == ""
