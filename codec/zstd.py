"""Zstandard frames for small sections of packs and archives, and bounded memory for hostile ones."""

import zstandard

from codec.errors import FormatError


def shrink(data: bytes) -> bytes:
    """Compress `data` with zstandard at level 19, for small sections such as JSON and tokenizers."""
    return zstandard.ZstdCompressor(level=19, write_content_size=True, write_checksum=False).compress(data)


def unshrink(data: bytes, limit: int, what: str) -> bytes:
    """Decompress a frame of `shrink`.

    Args:
        data: the frame.
        limit: the most bytes that the frame may hold; it bounds memory.
        what: what the frame should be, for the error message.

    Raises:
        FormatError: `data` is no zstandard frame, or holds over `limit` bytes.
    """
    try:
        size = zstandard.frame_content_size(data)
        if not 0 <= size <= limit:
            raise FormatError(f"{what}: {size} bytes when decompressed, expected at most {limit}")
        return zstandard.ZstdDecompressor().decompress(data, max_output_size=limit)
    except zstandard.ZstdError as error:
        raise FormatError(f"{what}: not a zstandard frame ({error})") from error
