"""eval.score.streams: the same tokens from text and from shards, and errors that name the file."""

import json
import lzma

import numpy as np
import pytest

import eval.score.streams
from codec.errors import CodecError, FormatError, MismatchError
from codec.model.tokenizer import BOS
from eval.score.streams import measured_stream, stream_bytes, token_stream
from tests.support.helpers import lossless_tokenizer
from trainer.data.sample import sp1024
from trainer.data.shards import write_shard

TEXTS = ["First document.", "", "A second one, with naïve words."]


@pytest.fixture(scope="module")
def tokenizer():
    return sp1024()


@pytest.fixture(scope="module")
def expected(tokenizer):
    return [token for text in TEXTS for token in [BOS, *tokenizer.encode(text.encode()).tolist()]]


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return path


@pytest.fixture
def shard(tmp_path, expected):
    path = tmp_path / "shards" / "any_val_000000.bin"
    write_shard(path, np.array(expected))
    return path


def test_text_and_shards_give_the_same_stream(text, shard, tokenizer, expected):
    packed = shard.with_suffix(".bin.xz")
    packed.write_bytes(lzma.compress(shard.read_bytes()))
    for path in (text, shard, shard.parent, packed):
        stream = token_stream(path, tokenizer)
        assert stream.dtype == np.uint16
        assert stream.tolist() == expected


def test_a_folder_of_shards_is_its_validation_split(shard, tokenizer, expected):
    write_shard(shard.with_name("any_val_000001.bin"), np.array([BOS, 400]))
    write_shard(shard.with_name("any_train_000000.bin"), np.array([BOS, 500]))
    assert token_stream(shard.parent, tokenizer).tolist() == [*expected, BOS, 400]


@pytest.mark.parametrize("enough", [1, 3, 9, 10_000])
def test_reading_stops_when_there_is_enough(text, shard, tokenizer, expected, enough):
    assert token_stream(text, tokenizer, enough).tolist() == expected[:enough]
    assert token_stream(shard, tokenizer, enough).tolist() == expected[:enough]


def test_progress_adds_up_to_the_size(text, tokenizer):
    told = []
    token_stream(text, tokenizer, advance=told.append)
    assert sum(told) == stream_bytes(text) == text.stat().st_size


def test_a_damaged_archive_of_a_shard_is_an_error(shard, tokenizer):
    packed = shard.with_suffix(".bin.xz")
    whole = lzma.compress(shard.read_bytes())
    for content in (whole[:-9], b"not xz", b"", lzma.compress(shard.read_bytes()[:-1])):
        packed.write_bytes(content)
        with pytest.raises(FormatError, match="any_val_000000"):
            token_stream(packed, tokenizer)


def test_an_archive_that_unpacks_without_end_is_an_error(shard, tokenizer, monkeypatch):
    monkeypatch.setattr(eval.score.streams, "MAX_SHARD_BYTES", 1 << 20)
    packed = shard.with_suffix(".bin.xz")
    packed.write_bytes(lzma.compress(bytes(3 << 20)))
    with pytest.raises(FormatError, match="unpacks to over 1,048,576 bytes"):
        token_stream(packed, tokenizer)


def test_a_token_that_the_tokenizer_has_not_is_an_error(shard, tokenizer):
    write_shard(shard, np.array([BOS, 5000]))
    with pytest.raises(MismatchError, match="token 5000"):
        token_stream(shard, tokenizer)


def test_a_path_that_is_not_there_is_an_error(tmp_path, tokenizer):
    for name in ("none.jsonl", "none.bin", "none.bin.xz", "none"):
        with pytest.raises(CodecError, match="none"):
            stream_bytes(tmp_path / name)
        with pytest.raises(CodecError, match="none"):
            token_stream(tmp_path / name, tokenizer)


@pytest.mark.parametrize("text", [bytes(range(0x80, 0x100)) * 9, "\ufdfa".encode() * 50, b"plain words", b""])
def test_the_bytes_of_a_text_are_its_own(tmp_path, text):
    (tmp_path / "t.txt").write_bytes(text)
    tokenizer = sp1024() if "\ufdfa" in text.decode(errors="ignore") else lossless_tokenizer()
    stream = measured_stream(tmp_path / "t.txt", tokenizer)
    assert stream.sizes.sum() == len(text)
    assert len(text) < 100 or len(tokenizer.decode(stream.tokens)) > 2 * len(text)
    assert len(stream.sizes) == len(stream.tokens)
    assert stream.sizes.min() >= 0


def test_shards_of_another_tokenizer_are_refused(tmp_path):
    write_shard(tmp_path / "s.bin", np.array([1, 270, 271]), lossless_tokenizer())
    for path in (tmp_path / "s.bin", tmp_path / "s.bin.xz"):
        if not path.exists():
            path.write_bytes(lzma.compress((tmp_path / "s.bin").read_bytes()))
        with pytest.raises(MismatchError, match="made with the tokenizer"):
            measured_stream(path, sp1024())
