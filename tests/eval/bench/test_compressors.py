"""eval.bench.compressors: the sizes are those of files that the baselines themselves restore."""

import gzip
import lzma

import brotli
import zstandard

from eval.bench.compressors import BASELINES, baseline_sizes, zstd_size
from trainer.data.sample import val_documents

TEXT = b"Of all that a library holds, the catalogue is read most. " * 20 + bytes(range(256))

DECOMPRESS = {
    "gzip -9": gzip.decompress,
    "xz -9e": lzma.decompress,
    "zstd -19": lambda data: zstandard.ZstdDecompressor().decompress(data),
    "brotli -11": brotli.decompress,
}


def test_every_baseline_restores_the_concatenation():
    assert set(BASELINES) == set(DECOMPRESS)
    for name, compress in BASELINES.items():
        for data in (TEXT, b""):
            assert DECOMPRESS[name](compress(data)) == data, name


def test_sizes_are_of_one_stream():
    parts = [TEXT[:500], b"", TEXT[500:]]
    sizes = baseline_sizes(parts)
    assert sizes == {name: len(compress(TEXT)) for name, compress in BASELINES.items()}
    assert all(0 < size < len(TEXT) for size in sizes.values())


def test_no_setting_of_a_baseline_is_weaker_than_its_name_says():
    text = b"".join(list(val_documents())[:20])
    sizes = baseline_sizes([text])
    assert sizes["gzip -9"] <= len(gzip.compress(text, 6))
    assert sizes["zstd -19"] <= len(zstandard.ZstdCompressor(level=12, write_checksum=True).compress(text))
    assert sizes["brotli -11"] < sizes["gzip -9"]


def test_sizes_are_the_same_every_time():
    assert baseline_sizes([TEXT]) == baseline_sizes([TEXT])


def test_a_document_alone_is_what_an_archive_stores():
    assert zstd_size(b"") == 0
    assert zstd_size(TEXT) == len(zstandard.ZstdCompressor(level=19).compress(TEXT))
