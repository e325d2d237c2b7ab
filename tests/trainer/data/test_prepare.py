"""Preparing shards: the challenge's own bytes, the same for any number of processes, whole or not at all."""

import hashlib
import json
import lzma
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from codec.errors import CodecError, FormatError
from tests.support.helpers import shared
from trainer.data import prepare as module
from trainer.data.documents import input_bytes, read_documents
from trainer.data.prepare import prepare
from trainer.data.sample import sp1024, val_documents
from trainer.data.shards import find_shards, read_shard, write_shard
from underpar.commands import app

TEXTS = [f"Document {i} says {i * i}.\n" * (i % 7) for i in range(60)]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return path


def tree(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_documents_become_bos_and_tokens(tmp_path: Path, source: Path) -> None:
    tokenizer = sp1024()
    amounts: list[float] = []
    manifest = prepare(
        [source, source], tokenizer, tmp_path / "out", val_documents=7, tokens_per_shard=100, advance=amounts.append
    )
    assert sum(amounts) == 2 * input_bytes(source)
    texts = [text.encode() for text in TEXTS * 2]
    for split, expected in (("val", texts[:7]), ("train", texts[7:])):
        tokens = np.concatenate([np.append(1, tokenizer.encode(text)) for text in expected])
        paths = find_shards(tmp_path / "out", split)
        assert [len(read_shard(p)) for p in paths[:-1]] == [100] * (len(paths) - 1)
        assert np.array_equal(np.concatenate([read_shard(p) for p in paths]), tokens)
        assert manifest["splits"][split] == {
            "documents": len(expected),
            "tokens": len(tokens),
            "text_bytes": sum(map(len, expected)),
            "canonical_bytes": len(tokenizer.decode(tokens)),
            "files": [p.name for p in paths],
        }
    assert json.loads((tmp_path / "out" / "manifest.json").read_text()) == manifest
    assert (tmp_path / "out" / "tokenizer.model").read_bytes() == tokenizer.model
    assert manifest["tokenizer"]["sha256"] == hashlib.sha256(tokenizer.model).hexdigest()
    assert manifest["sources"] == ["in.jsonl", "in.jsonl"]


def test_any_number_of_processes_and_size_of_chunks(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = sp1024()
    prepare([source], tokenizer, tmp_path / "1", val_documents=9, tokens_per_shard=50)
    monkeypatch.setattr(module, "CHUNK_BYTES", 120)
    prepare([source], tokenizer, tmp_path / "2", val_documents=9, tokens_per_shard=50)
    prepare([source], tokenizer, tmp_path / "3", val_documents=9, tokens_per_shard=50, processes=3)
    assert tree(tmp_path / "1") == tree(tmp_path / "2") == tree(tmp_path / "3")


def test_training_documents_that_share_words_with_held_out_text_are_left_out(tmp_path: Path) -> None:
    words = [f"word{i}" for i in range(100)]
    texts = [" ".join(words[i : i + 20]) for i in range(0, 80, 4)]  # each shares 16 words with the next
    for name, lines in (("in", texts), ("held", ["short", " ".join(words[:15]), " ".join(words[60:73])])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in lines))
    held = tmp_path / "held.jsonl"
    shared_words = [bool(set(range(i, i + 8)) & {0, 1, 2, 60}) for i in range(0, 80, 4)]  # first words of passages
    for processes in (1, 3):
        out = tmp_path / str(processes)
        manifest = prepare(
            [tmp_path / "in.jsonl"], sp1024(), out, val_documents=1, processes=processes, without=[held, held]
        )
        kept = [text for text, leave in zip(texts[1:], shared_words[1:], strict=True) if not leave]
        assert manifest["splits"]["val"]["documents"] == 1  # though it shares words
        assert manifest["splits"]["train"]["documents"] == len(kept) < len(texts) - 2
        assert manifest["splits"]["train"]["text_bytes"] == sum(map(len, kept))
        left = len(texts) - 1 - len(kept)
        lost = sum(map(len, texts[1:])) - sum(map(len, kept))
        assert manifest["left_out"] == {"documents": left, "text_bytes": lost, "without": ["held.jsonl"] * 2}
        tokens = read_shard(find_shards(out, "train")[0])
        assert list(read_documents(find_shards(out, "train")[0], sp1024())) == [text.encode() for text in kept]
        assert manifest["splits"]["train"]["tokens"] == len(tokens)
    with pytest.raises(FormatError, match="all 20 documents share words"):
        prepare([tmp_path / "in.jsonl"], sp1024(), tmp_path / "none", without=[tmp_path / "in.jsonl"])
    assert not (tmp_path / "none").exists()


def test_reproduces_the_challenge_shard(tmp_path: Path) -> None:
    head = shared("data", "val", "fineweb_val_head.jsonl.xz")
    manifest = prepare([head], sp1024(), tmp_path / "out", val_documents=901, processes=2)
    theirs = lzma.decompress(shared("data", "val", "fineweb_val_head_sp1024.bin.xz").read_bytes())
    ours = (tmp_path / "out" / "fineweb_val_000000.bin").read_bytes()
    assert ours[:12] + bytes(32) + ours[44:] == theirs  # which does not say its tokenizer
    assert manifest["splits"]["val"]["documents"] == 901
    assert manifest["splits"]["val"]["text_bytes"] == manifest["splits"]["val"]["canonical_bytes"] == 2_504_310
    assert manifest["splits"]["train"]["files"] == []


def test_shards_give_the_canonical_documents_back(tmp_path: Path) -> None:
    texts = list(val_documents())[:20]
    (tmp_path / "in").mkdir()
    for i, text in enumerate(texts):
        (tmp_path / "in" / f"{i:02}.txt").write_bytes(text)
    prepare([tmp_path / "in"], sp1024(), tmp_path / "out", tokens_per_shard=1000)
    assert list(read_documents(tmp_path / "out", sp1024())) == texts


def test_nothing_is_left_after_an_error(tmp_path: Path, source: Path) -> None:
    with source.open("a") as file:
        file.write("broken")
    for processes in (1, 2):
        with pytest.raises(FormatError, match="line 61"):
            prepare([source], sp1024(), tmp_path / "out", processes=processes, tokens_per_shard=10)
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


def test_refusals(tmp_path: Path, source: Path) -> None:
    with pytest.raises(FormatError, match="60 documents of input, expected at least 61"):
        prepare([source], sp1024(), tmp_path / "out", val_documents=61)
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(FormatError, match="0 documents of input"):
        prepare([tmp_path / "empty.jsonl"], sp1024(), tmp_path / "out")
    with pytest.raises(CodecError, match="expected an empty folder"):
        prepare([source], sp1024(), tmp_path)
    write_shard(tmp_path / "a.bin", np.array([1, 5]))
    with pytest.raises(CodecError, match="its own tokenizer"):
        prepare([tmp_path / "a.bin"], sp1024(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_commands(tmp_path: Path, source: Path) -> None:
    (tmp_path / "t.model").write_bytes(sp1024().model)
    (tmp_path / "out").mkdir()
    model, out = str(tmp_path / "t.model"), str(tmp_path / "out")
    arguments = ["data", "prepare", str(source), "--tokenizer", model, "-o", out, "--val-documents", "5"]
    result = CliRunner().invoke(app, [*arguments, "--processes", "1", "--json"])
    assert result.exit_code == 0, result.output
    prepared = json.loads(result.stdout)
    assert prepared["splits"]["val"]["documents"] == 5
    result = CliRunner().invoke(app, ["data", "info", out, "--tokenizer", model, "--json"])
    assert result.exit_code == 0, result.output
    described = json.loads(result.stdout)
    for name in ("documents", "tokens", "canonical_bytes"):
        assert described[name] == sum(split[name] for split in prepared["splits"].values())
    assert [Path(entry["path"]).name for entry in described["shards"]] == [
        "fineweb_train_000000.bin",
        "fineweb_val_000000.bin",
    ]
    result = CliRunner().invoke(app, ["data", "info", out])
    assert result.exit_code == 0 and "fineweb_val_000000" in result.stdout
