"""An archive is never larger than what general compressors make of a file, besides 1 %, 64 bytes and its name."""

import lzma
import random

import pytest
import zstandard

from codec.archive.encode_files import Settings, encode_files
from codec.archive.reader import ArchiveReader
from codec.archive.sources import find_sources
from trainer.data.sample import val_documents

LINES = b"".join(b'{"n": %d, "text": "%s"}\r\n' % (n, b"words of line %d" % n * 5) for n in range(300))

KINDS = {
    "empty": b"",
    "one": b"a",
    "noise": random.Random(2).randbytes(70_000),
    "zeros": bytes(100_000),
    "text": b" ".join(list(val_documents())[:3])[:8000],
    "repetition": b"The same line.\n" * 9000,
    "lines": LINES,
}


@pytest.mark.parametrize("kind", KINDS)
def test_never_larger_than_general_compressors(tmp_path, kind):
    import pyppmd

    data, name = KINDS[kind], "x.jsonl" if kind == "lines" else "x"
    (tmp_path / name).write_bytes(data)
    encode_files(find_sources([tmp_path / name]), tmp_path / "a.upz", Settings())
    encoder = pyppmd.Ppmd7Encoder(6, 16 << 20)
    best = min(
        len(data),
        len(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME)),
        len(zstandard.ZstdCompressor(level=19).compress(data)),
        len(encoder.encode(data) + encoder.flush()),
    )
    assert (tmp_path / "a.upz").stat().st_size <= 1.01 * best + 64 + len(name)
    with ArchiveReader(tmp_path / "a.upz") as reader:
        assert reader.open(name).read() == data
