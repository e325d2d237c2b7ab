"""The embedded sample: complete, apart from the validation text, and what its README says."""

import hashlib
import json
import lzma
from collections import Counter
from importlib.resources import files

import pytest

from codec.errors import CodecError
from tests.support.helpers import shared
from trainer.data import sample
from trainer.data.sample import sp1024, train_documents, val_documents


def shingles(document: bytes) -> set[tuple[str, ...]]:
    words = document.decode().lower().split()
    return {tuple(words[i : i + 13]) for i in range(len(words) - 12)}


def test_sizes() -> None:
    train, val = list(train_documents()), list(val_documents())
    assert (len(train), sum(map(len, train))) == (1938, 5_092_399)
    assert (len(val), sum(map(len, val))) == (120, 349_287)


def test_an_installation_without_the_sample_says_so(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(sample, "files", lambda package: tmp_path / package)
    for read in (sp1024, lambda: list(val_documents()), lambda: list(train_documents())):
        with pytest.raises(CodecError, match="without the sample"):
            read()


def test_readme_counts_and_names_every_file() -> None:
    folder = files("trainer") / "sample"
    readme = (folder / "README.md").read_text()
    lines = lzma.decompress((folder / "train.jsonl.xz").read_bytes()).splitlines()
    documents, size = Counter[str](), Counter[str]()
    for line in lines:
        entry = json.loads(line)
        documents[entry["source"]] += 1
        size[entry["source"]] += len(entry["text"].encode())
    for source in ("fineweb-challenge", "fineweb", "c4"):
        assert f"| {documents[source]:,} | {size[source]:,} | `{source}` |" in readme
    for entry in folder.iterdir():
        assert f"`{entry.name}`" in readme or entry.name == "README.md"


def test_training_text_is_apart_from_validation_text() -> None:
    val = set().union(*map(shingles, val_documents()))
    assert not any(shingles(document) & val for document in train_documents())


def test_tokenizer_is_the_challenge_s_and_keeps_the_validation_text() -> None:
    tokenizer = sp1024()
    assert tokenizer.vocab_size == 1024
    assert all(tokenizer.decode(tokenizer.encode(document)) == document for document in val_documents())
    theirs = shared("data", "tokenizers", "fineweb_1024_bpe.model").read_bytes()
    assert tokenizer.sha256 == hashlib.sha256(theirs).hexdigest()
