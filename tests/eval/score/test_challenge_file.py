"""eval.score.challenge_file: every container of the challenge, and files that are damaged, hostile or something
else.
"""

import io
import lzma
import pickle
import zipfile
import zlib

import brotli
import pytest
import torch
import zstandard

import eval.score.challenge_file
from codec.errors import FormatError
from eval.score.challenge_file import read_content

CONTENT = {"w": {"a": torch.arange(1000, dtype=torch.int8), "b": torch.ones(3).half()}, "m": {"a": "note"}}

COMPRESSORS = {
    "zlib": lambda raw: zlib.compress(raw, 9),
    "zstd": lambda raw: zstandard.ZstdCompressor(level=19).compress(raw),
    "xz": lambda raw: lzma.compress(raw, preset=6),
    "brotli": lambda raw: brotli.compress(raw, quality=5),
}


def saved(content=CONTENT):
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def shuffled(raw, parts):
    return b"BSHF" + bytes([parts]) + b"".join(raw[part::parts] for part in range(parts))


def same(found):
    return found["m"] == CONTENT["m"] and all(torch.equal(found["w"][name], CONTENT["w"][name]) for name in "ab")


@pytest.mark.parametrize("name", COMPRESSORS)
def test_every_compressor_with_and_without_shuffling(name):
    for raw in (saved(), *(shuffled(saved(), parts) for parts in (1, 2, 3, 255))):
        assert same(read_content(COMPRESSORS[name](raw)))
    assert same(read_content(saved()))


@pytest.mark.parametrize("name", COMPRESSORS)
def test_a_missing_end_is_an_error(name):
    blob = COMPRESSORS[name](saved())
    for size in (0, 1, 6, 100, len(blob) // 2, len(blob) - 1):
        with pytest.raises(FormatError, match="artifact: "):
            read_content(blob[:size])
    with pytest.raises(FormatError, match="truncated"):
        read_content(COMPRESSORS["zlib"](saved())[:-1])


@pytest.mark.parametrize("name", COMPRESSORS)
def test_unpacking_is_bounded(name, monkeypatch):
    monkeypatch.setattr(eval.score.challenge_file, "MAX_BYTES", 1 << 25)
    with pytest.raises(FormatError, match="unpacks to over 33,554,432 bytes"):
        read_content(COMPRESSORS[name](bytes((1 << 25) + 1)))


def test_compressed_records_are_refused():
    """They would unpack past the bound on the file that holds them."""
    packed = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(saved())) as source, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target:
        for record in source.infolist():
            target.writestr(record.filename, source.read(record))
    with pytest.raises(FormatError, match="compressed records"):
        read_content(zlib.compress(packed.getvalue()))


class Exploit:
    def __reduce__(self):
        return (exec, ("raise KeyboardInterrupt",))


def test_code_in_the_pickle_never_runs():
    with pytest.raises(FormatError, match=r"not a torch\.save file of plain tensors"):
        read_content(zlib.compress(saved({"w": Exploit()})))
    with pytest.raises(FormatError, match=r"holds no torch\.save file"):
        read_content(zlib.compress(pickle.dumps(Exploit())))


def test_what_is_something_else_is_named():
    with pytest.raises(FormatError, match="neither zlib, zstandard, xz nor brotli"):
        read_content(b"UPAK" + bytes(64))
    with pytest.raises(FormatError, match="packed with lrzip"):
        read_content(b"PGRP" + bytes(64))
    with pytest.raises(FormatError, match="shuffled into 0 parts"):
        read_content(zlib.compress(b"BSHF\0" + saved()))
    with pytest.raises(FormatError, match="shuffled into 0 parts"):
        read_content(zlib.compress(b"BSHF"))
