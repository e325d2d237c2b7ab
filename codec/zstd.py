"""Zstandard frames for small sections of packs and archives, and bounded memory for hostile ones."""

import zstandard

from codec.errors import FormatError


def shrink(data: bytes) -> bytes:
    """`data` under zstandard 19, for text such as JSON and tokenizers."""
    return zstandard.ZstdCompressor(level=19, write_content_size=True, write_checksum=False).compress(data)


def unshrink(data: bytes, limit: int, what: str) -> bytes:
    """The counterpart of `shrink`.

    Raises:
        FormatError: not a zstandard frame, or one of over `limit` bytes.
    """
    try:
        size = zstandard.frame_content_size(data)
        if not 0 <= size <= limit:
            raise FormatError(f"{what}: {size} bytes when decompressed, expected at most {limit}")
        return zstandard.ZstdDecompressor().decompress(data, max_output_size=limit)
    except zstandard.ZstdError as error:
        raise FormatError(f"{what}: not a zstandard frame ({error})") from error
