"""What general-purpose compressors make of the same bytes, at the setting that makes them smallest.

All documents are one stream, joined by nothing: a peer may look back into earlier documents and need not say where one
ends. An archive of ours codes each document alone and keeps the boundaries, so the comparison favours the peers. The
model is no part of these sizes: whoever compares them with an archive says what the pack weighs.
"""

import gzip
import lzma
from collections.abc import Callable, Sequence

import brotli
import zstandard

PEERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip -9": lambda data: gzip.compress(data, 9, mtime=0),
    "xz -9e": lambda data: lzma.compress(data, preset=9 | lzma.PRESET_EXTREME),
    "zstd -19": lambda data: zstandard.ZstdCompressor(level=19, write_checksum=True).compress(data),
    "brotli -11": lambda data: brotli.compress(data, quality=11, lgwin=24),
}
"""Each compresses as its command of that name does, checksums included where the command writes them."""


def peer_sizes(documents: Sequence[bytes]) -> dict[str, int]:
    """Bytes that each peer needs for the concatenation of `documents`.

    >>> sorted(peer_sizes([b"to be or not to be", b"that is the question"]))
    ['brotli -11', 'gzip -9', 'xz -9e', 'zstd -19']
    """
    data = b"".join(documents)
    return {name: len(compress(data)) for name, compress in PEERS.items()}


def zstd_size(document: bytes) -> int:
    """Bytes that zstandard at level 19 needs for one document alone: what an archive would store."""
    return len(zstandard.ZstdCompressor(level=19).compress(document)) if document else 0
