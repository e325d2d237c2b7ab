"""Shards: golden bytes, splitting, and files that are not what they say."""

import lzma
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import pre_tokenizers

from codec.errors import FormatError, MismatchError
from codec.model.byte_pairs import BytePairs, serialize
from codec.model.tokenizer import Tokenizer
from tests.support.helpers import lossless_tokenizer, shared
from trainer.data import shards
from trainer.data.documents import read_documents
from trainer.data.prepare import encode_documents
from trainer.data.sample import sp1024
from trainer.data.shards import (
    ShardWriter,
    check_tokenizer,
    describe_shard,
    find_shards,
    read_shard,
    shard_length,
    write_shard,
)

TOKENS = np.array([1, 2, 0x1234, 65535], np.uint16)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return sp1024()


def test_bytes_are_the_challenge_format(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.bin", TOKENS)
    data = (tmp_path / "a.bin").read_bytes()
    assert data == struct.pack("<256i", 20240520, 1, 4, *[0] * 253) + b"\x01\x00\x02\x00\x34\x12\xff\xff"


def test_read_back_whole_and_in_part(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    write_shard(path, TOKENS.astype(np.int64))
    assert shard_length(path) == 4
    assert isinstance(read_shard(path), np.memmap)
    assert read_shard(path).tolist() == TOKENS.tolist()
    assert read_shard(path, 1, 2).tolist() == [2, 0x1234]
    assert read_shard(path, 4).tolist() == []
    with pytest.raises(FormatError, match="tokens 3 to 5 wanted, it has 4"):
        read_shard(path, 3, 2)


def test_empty_shard(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.bin", np.empty(0, np.uint16))
    assert len(read_shard(tmp_path / "a.bin")) == 0


def wide_tokenizer() -> BytePairs:
    """70,000 words without merges, of which those of single bytes have the last ids."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = {f"filler{n}": n for n in range(1, 70_000)} | {c: 70_000 + n for n, c in enumerate(alphabet)}
    return BytePairs(serialize(words, [], {0: "<|endoftext|>"}, "gpt2", False, 0, 0))


def test_a_vocabulary_of_over_65536(tmp_path: Path) -> None:
    """Version 2 has uint32 tokens; documents come back, and what describes shards counts them."""
    tokenizer, documents = wide_tokenizer(), [b"one", "zwei µ".encode(), b"", b"three"]
    tokens = encode_documents(documents, tokenizer)
    with ShardWriter(tmp_path, "x", "val", 9, tokenizer) as writer:
        writer.append(tokens)
    assert len(writer.paths) == 3 and writer.paths[0].stat().st_size == 1024 + 4 * 9
    assert np.concatenate([read_shard(path) for path in writer.paths]).tolist() == tokens.tolist()
    assert read_shard(writer.paths[1], 2, 3).dtype == np.uint32
    assert list(read_documents(tmp_path, tokenizer)) == documents
    info = describe_shard(writer.paths[0], tokenizer)
    assert (info.version, info.tokens, info.documents) == (2, 9, 2)
    with pytest.raises(MismatchError):
        describe_shard(writer.paths[0], sp1024())


@pytest.mark.parametrize("token", [-1, 65536])
def test_tokens_that_do_not_fit_are_refused(tmp_path: Path, token: int) -> None:
    with pytest.raises(FormatError, match="0 to 65535"):
        write_shard(tmp_path / "a.bin", np.array([1, token]))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d[:-1], "truncated"),
        (lambda d: d[:-2], "truncated"),
        (lambda d: d + b"\0", "oversized"),
        (lambda d: d[:100], "expected a header"),
        (lambda d: b"", "expected a header"),
        (lambda d: b"\0" * 4 + d[4:], "magic number 0"),
        (lambda d: d[:4] + b"\x02" + d[5:], "truncated"),
        (lambda d: d[:4] + b"\x03" + d[5:], "version 3"),
        (lambda d: d[:8] + b"\xff" * 4 + d[12:], "-1 tokens"),
        (lambda d: d[:8] + b"\xff\xff\xff\x7f" + d[12:], "truncated"),
    ],
)
def test_broken_files_are_refused(tmp_path: Path, change, message: str) -> None:
    path = tmp_path / "a.bin"
    write_shard(path, TOKENS)
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(FormatError, match=message):
        read_shard(path)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="No such file"):
        shard_length(tmp_path / "none.bin")
    with pytest.raises(FormatError, match="directory"):
        shard_length(tmp_path)


@given(st.lists(st.lists(st.integers(0, 65535), max_size=9), max_size=9), st.integers(1, 7))
def test_writer_cuts_the_stream_anywhere(tmp_path_factory: pytest.TempPathFactory, documents, size: int) -> None:
    folder = tmp_path_factory.mktemp("shards")
    with ShardWriter(folder, "x", "train", size) as writer:
        for document in documents:
            writer.append(np.array(document, np.uint16))
    stream = [token for document in documents for token in document]
    cut = [stream[i : i + size] for i in range(0, len(stream), size)]
    assert [p.name for p in writer.paths] == [f"x_train_{i:06d}.bin" for i in range(len(cut))]
    assert [read_shard(p).tolist() for p in writer.paths] == cut
    assert sorted(folder.iterdir()) == writer.paths


def test_writer_leaves_no_partial_shard_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(KeyError), ShardWriter(tmp_path, "x", "train", 3) as writer:
        writer.append(np.arange(5))
        raise KeyError
    assert [p.name for p in tmp_path.iterdir()] == ["x_train_000000.bin"]


def test_find_shards_keeps_order_and_leaves_out_byte_counts(tmp_path: Path) -> None:
    for name in ("f_train_000001.bin", "f_train_000000.bin", "f_val_000000.bin", "f_val_bytes_000000.bin"):
        write_shard(tmp_path / name, TOKENS)
    assert [p.name for p in find_shards(tmp_path, "train")] == ["f_train_000000.bin", "f_train_000001.bin"]
    assert [p.name for p in find_shards(tmp_path, "val")] == ["f_val_000000.bin"]
    with pytest.raises(FormatError, match="no shards"):
        find_shards(tmp_path / "none", "val")


def test_describe(tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "BLOCK", 4)
    path = tmp_path / "a.bin"
    tokens = np.concatenate([[1], tokenizer.encode(b"Hello there."), [1], tokenizer.encode("naïve €".encode())])
    write_shard(path, tokens)
    assert describe_shard(path).canonical_bytes is None
    info = describe_shard(path, tokenizer)
    assert (info.tokens, info.documents) == (len(tokens), 2)
    assert info.canonical_bytes == len(tokenizer.decode(tokens))
    write_shard(path, np.append(tokens, [1024, 7]))
    with pytest.raises(MismatchError, match=f"token 1024 at position {len(tokens)}"):
        describe_shard(path, tokenizer)


def test_a_real_shard(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = tmp_path / "val.bin"
    path.write_bytes(lzma.decompress(shared("data", "val", "fineweb_val_head_sp1024.bin.xz").read_bytes()))
    info = describe_shard(path, tokenizer)
    assert (info.tokens, info.documents, info.canonical_bytes) == (1_040_060, 901, 2_504_310)


def test_a_shard_says_which_tokenizer_made_it(tmp_path: Path) -> None:
    tokenizer, other = sp1024(), lossless_tokenizer()
    write_shard(tmp_path / "a.bin", np.array([1, 5]), tokenizer)
    assert check_tokenizer(tmp_path / "a.bin", tokenizer)
    with pytest.raises(MismatchError, match=r"a\.bin: made with the tokenizer .* pass the"):
        check_tokenizer(tmp_path / "a.bin", other)
    with pytest.raises(MismatchError, match="made with the tokenizer"):
        list(read_documents(tmp_path / "a.bin", other))
    assert read_shard(tmp_path / "a.bin").tolist() == [1, 5]


def test_of_a_shard_that_says_nothing_the_tokenizer_beside_it_tells(tmp_path: Path) -> None:
    tokenizer, other = sp1024(), lossless_tokenizer()
    write_shard(tmp_path / "a.bin", np.array([1, 5]))
    assert not check_tokenizer(tmp_path / "a.bin", other)
    (tmp_path / "tokenizer.model").write_bytes(tokenizer.model)
    assert check_tokenizer(tmp_path / "a.bin", tokenizer)
    with pytest.raises(MismatchError, match="made with the tokenizer"):
        check_tokenizer(tmp_path / "a.bin", other)


def test_a_writer_puts_the_tokenizer_into_every_shard(tmp_path: Path) -> None:
    tokenizer = sp1024()
    with ShardWriter(tmp_path, "x", "val", 10, tokenizer) as writer:
        writer.append(np.arange(25))
    heads = {path.read_bytes()[12:44].hex() for path in writer.paths}
    assert (len(writer.paths), heads) == (3, {tokenizer.sha256})
