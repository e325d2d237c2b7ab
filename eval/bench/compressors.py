"""Sizes of a text under general-purpose compressors, the baselines, each at its smallest setting.

All documents are one stream, without separators: a baseline may look back into earlier documents and stores no
boundaries. An archive codes each document alone and keeps the boundaries, so the comparison favours the baselines. The
sizes include no model: a comparison with an archive must give the size of the pack.
"""

import gzip
import lzma
from collections.abc import Callable, Sequence

import brotli
import zstandard

BASELINES: dict[str, Callable[[bytes], bytes]] = {
    "gzip -9": lambda data: gzip.compress(data, 9, mtime=0),
    "xz -9e": lambda data: lzma.compress(data, preset=9 | lzma.PRESET_EXTREME),
    "zstd -19": lambda data: zstandard.ZstdCompressor(level=19, write_checksum=True).compress(data),
    "brotli -11": lambda data: brotli.compress(data, quality=11, lgwin=24),
}
"""Compressors by name; each gives the bytes of the command of that name, its checksums included."""


def baseline_sizes(documents: Sequence[bytes]) -> dict[str, int]:
    """Return the bytes of the concatenation of `documents` under each baseline.

    >>> sorted(baseline_sizes([b"to be or not to be", b"that is the question"]))
    ['brotli -11', 'gzip -9', 'xz -9e', 'zstd -19']
    """
    data = b"".join(documents)
    return {name: len(compress(data)) for name, compress in BASELINES.items()}


def zstd_size(document: bytes) -> int:
    """Return the bytes of one document under zstandard at level 19; an archive would store so many."""
    return len(zstandard.ZstdCompressor(level=19).compress(document)) if document else 0
