"""Documents: every kind of file gives the same bytes, and broken ones say where they break."""

import gzip
import json
import lzma
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import zstandard

from codec.errors import CodecError, FormatError, MismatchError
from codec.model.tokenizer import Tokenizer
from tests.support.helpers import folding_tokenizer
from trainer.data import documents, shards
from trainer.data.documents import input_bytes, read_documents
from trainer.data.sample import sp1024
from trainer.data.shards import write_shard

TEXTS = ["Hello.\nThere\t€ ", "", "naïve 日本", "x" * 5000]
DOCUMENTS = [text.encode() for text in TEXTS]
LINES = b"".join(json.dumps({"id": i, "text": text}).encode() + b"\n" for i, text in enumerate(TEXTS))

PACKERS: dict[str, Callable[[bytes], bytes]] = {
    ".jsonl": bytes,
    ".jsonl.gz": gzip.compress,
    ".jsonl.xz": lzma.compress,
    ".jsonl.zst": zstandard.compress,
}


@pytest.mark.parametrize("suffix", PACKERS)
def test_json_lines(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(PACKERS[suffix](LINES))
    amounts: list[float] = []
    assert list(read_documents(path, advance=amounts.append)) == DOCUMENTS
    assert sum(amounts) == input_bytes(path) == path.stat().st_size


@pytest.mark.parametrize("suffix", PACKERS)
def test_joined_files_and_blank_lines(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    pack = PACKERS[suffix]
    path.write_bytes(pack(LINES) + pack(b"\n  \n") + pack(LINES.rstrip(b"\n")))
    assert list(read_documents(path)) == DOCUMENTS * 2


@pytest.mark.parametrize("suffix", [".jsonl.gz", ".jsonl.xz", ".jsonl.zst"])
def test_truncated_and_corrupted_compression(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    rng = np.random.default_rng(0)
    lines = b"".join(json.dumps({"text": rng.bytes(40).hex()}).encode() + b"\n" for _ in range(2000))
    data = PACKERS[suffix](lines)
    for broken in (data[:-2], data[: len(data) // 2], b"\0" + data, data[:-40] + b"\0" * 40):
        path.write_bytes(broken)
        with pytest.raises(FormatError, match="line"):
            list(read_documents(path))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"1" * 5000, "not JSON"),
        (b"[1]", "found list"),
        (b'{"content": "x"}', "found fields content"),
        (b'{"text": null}', "found fields text"),
        (b'{"text": "\\ud800"}', "half of a surrogate pair at character 0"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: bytes, message: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "a"}\n\n' + line + b"\n")
    stream = read_documents(path)
    assert next(stream) == b"a"
    with pytest.raises(FormatError, match=f"line 3: .*{message}"):
        next(stream)


def test_long_documents_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "MAX_DOCUMENT_BYTES", 100)
    for suffix, pack in PACKERS.items():
        path = tmp_path / f"a{suffix}"
        path.write_bytes(pack(b'{"text": "a"}\n{"text": "' + b"b" * 1_000_000))
        with pytest.raises(FormatError, match="line 2: over 100 bytes"):
            list(read_documents(path))
    (tmp_path / "a.txt").write_bytes(b"b" * 101)
    with pytest.raises(FormatError, match="over 100 bytes"):
        list(read_documents(tmp_path / "a.txt"))
    write_shard(tmp_path / "a.bin", np.full(200, 100))
    with pytest.raises(FormatError, match=r"without the token \(id 1\) that begins"):
        list(read_documents(tmp_path / "a.bin", sp1024()))


def test_text_is_any_bytes(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(bytes(range(256)) + b"\r\n")
    assert list(read_documents(tmp_path / "a.txt")) == [bytes(range(256)) + b"\r\n"]


def test_folder_in_order_of_paths(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "0.txt").write_bytes(b"third")
    (tmp_path / "a.txt").write_bytes(b"second")
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "first"}')
    (tmp_path / "README.md").write_bytes(b"no document")
    (tmp_path / ".hidden.txt").write_bytes(b"no document")
    assert list(read_documents(tmp_path)) == [b"first", b"second", b"third"]
    assert input_bytes(tmp_path) == len(b'{"text": "first"}') + len(b"second") + len(b"third")


def test_unknown_names(tmp_path: Path) -> None:
    (tmp_path / "a.doc").write_bytes(b"x")
    with pytest.raises(FormatError, match=r"expected a name that ends in \.jsonl"):
        list(read_documents(tmp_path / "a.doc"))
    with pytest.raises(FormatError, match="holds no documents"):
        list(read_documents(tmp_path))
    with pytest.raises(FormatError, match="no such file"):
        list(read_documents(tmp_path / "none.jsonl"))


def test_parquet(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "a.parquet"
    for kind in (pa.string(), pa.large_string()):
        pq.write_table(pa.table({"id": range(4), "text": pa.array(TEXTS, kind)}), path, row_group_size=3)
        amounts: list[float] = []
        assert list(read_documents(path, advance=amounts.append)) == DOCUMENTS
        assert sum(amounts) == pytest.approx(path.stat().st_size)


def test_bad_parquet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"body": ["a"]}), path)
    with pytest.raises(FormatError, match="columns body"):
        list(read_documents(path))
    pq.write_table(pa.table({"text": [1]}), path)
    with pytest.raises(FormatError, match="column of int64"):
        list(read_documents(path))
    pq.write_table(pa.table({"text": ["a", None]}), path)
    with pytest.raises(FormatError, match="row 2: the text is null"):
        list(read_documents(path))
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(FormatError, match="after row 0"):
        list(read_documents(path))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(CodecError, match=r"underpar\[parquet\]"):
        list(read_documents(path))


@pytest.mark.parametrize("tokenizer", [sp1024(), folding_tokenizer()], ids=["plain", "folding"])
@pytest.mark.parametrize("block", [1, 2, 3, 1 << 20])
def test_shards_of_a_split_are_one_stream(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int, tokenizer: Tokenizer
) -> None:
    monkeypatch.setattr(shards, "BLOCK", block)
    texts = [b"One document.", b"", b"Another, which is longer. NASA", b""]
    tokens = np.concatenate([np.append(1, tokenizer.encode(text)) for text in texts])
    for i, part in enumerate(np.array_split(tokens, 4)):
        write_shard(tmp_path / f"f_val_{i:06d}.bin", part)
    write_shard(tmp_path / "f_val_bytes_000000.bin", np.arange(9))
    write_shard(tmp_path / "f_train_000000.bin", np.append(tokenizer.encode(b"A tail."), 1))
    amounts: list[float] = []
    assert list(read_documents(tmp_path, tokenizer, amounts.append)) == [b"A tail.", b"", *texts]
    assert sum(amounts) == input_bytes(tmp_path)
    first = list(read_documents(tmp_path / "f_val_000000.bin", tokenizer))
    assert len(first) == 1 and texts[0].startswith(first[0])


def test_shards_need_their_tokenizer(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    write_shard(path, np.array([1, 5, 1024]))
    with pytest.raises(CodecError, match="its own tokenizer"):
        list(read_documents(path))
    with pytest.raises(MismatchError, match="token 1024 at position 2"):
        list(read_documents(path, sp1024()))
    write_shard(path, np.array([], np.uint16))
    assert list(read_documents(path, sp1024())) == []
