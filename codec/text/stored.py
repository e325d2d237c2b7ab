"""Store bytes under the general compressor that makes fewest of them: none, zstandard, LZMA2 or PPMd.

A payload is a byte for the method, what the method's decoder needs to know, and the data. For LZMA2 and PPMd the size
of the original comes first, as a varint: a size that the caller knows, or a bound on it, limits what a decoder does.
The payload of no bytes is empty.
"""

import lzma
from enum import IntEnum

import zstandard

from codec.entropy.varint import Fields, varint
from codec.errors import FormatError


class Method(IntEnum):
    """The compressor of a payload."""

    RAW = 0
    ZSTD = 1
    XZ = 2  # a raw LZMA2 stream
    PPMD = 3  # variant H of 7-Zip, behind two bytes: the order, and the binary logarithm of the memory


_MOST_BYTES = 1 << 30  # where nothing else says how many there are
_ORDERS = (4, 8, 16)  # of PPMd that are tried: short text, longer text, repetition
_ORDERS_UP_TO = 1 << 22  # bytes; more are tried with one order
_MEMORY = (16, 27)  # binary logarithms of the least and the most bytes of PPMd's model
_PPMD_RATIO = 18  # binary logarithm of what a byte may stand for at most: a symbol of a share of 1 - 2^-14 at its best
_DICTIONARY = (12, 26)  # the same of LZMA2's dictionary: what it needs at least, and the bytes of a part of an archive


def store(data: bytes) -> bytes:
    """Compress any bytes with the method that makes fewest of them.

    >>> store(b"ab")
    b'\\x00ab'
    """
    if not data:
        return b""
    zstd = bytes([Method.ZSTD]) + zstandard.ZstdCompressor(level=19).compress(data)
    found = [bytes([Method.RAW]) + data, zstd]
    if len(data) > 32:  # what the others begin with is not worth it
        found.append(
            bytes([Method.XZ]) + varint(len(data)) + lzma.compress(data, lzma.FORMAT_RAW, filters=_filters(len(data)))
        )
        found += _ppmd(data)
    return min(found, key=len)


def _ppmd(data: bytes) -> list[bytes]:
    import pyppmd  # slow to import for what is rarely used

    memory = min(max((16 * len(data)).bit_length(), _MEMORY[0]), _MEMORY[1])
    found = []
    for order in _ORDERS if len(data) <= _ORDERS_UP_TO else _ORDERS[1:2]:
        encoder = pyppmd.Ppmd7Encoder(order, 1 << memory)
        found.append(
            bytes([Method.PPMD]) + varint(len(data)) + bytes([order, memory]) + encoder.encode(data) + encoder.flush()
        )
    return found


def _filters(size: int) -> list[dict[str, int]]:
    """Return LZMA2's filters for `size` bytes. The size alone gives the dictionary, so the file need not name it."""
    bits = min(max((size - 1).bit_length(), _DICTIONARY[0]), _DICTIONARY[1])
    return [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": 1 << bits}]


def unstore(payload: bytes, size: int | None = None) -> bytes:
    """Return the bytes of a payload, in memory that is bounded by `size`.

    Args:
        payload: of `store`.
        size: the bytes that the payload must have; None to believe the payload, up to a bound.

    Raises:
        FormatError: the payload does not have `size` bytes, or is damaged.
    """
    if not payload:
        data = b""
    else:
        try:
            data = _decompress(payload, size)
        except (zstandard.ZstdError, lzma.LZMAError, ValueError, MemoryError, SystemError) as error:
            raise FormatError(f"stored record of {len(payload)} bytes is damaged ({error})") from error
    if size is not None and len(data) != size:
        raise FormatError(f"stored record of {len(data)} bytes, expected {size}; the archive is damaged")
    return data


def _decompress(payload: bytes, size: int | None) -> bytes:
    """Return at most as many bytes as the payload states, or raise the error of the library that decodes it."""
    method, data = payload[0], payload[1:]
    if method == Method.RAW:
        return data
    if method == Method.ZSTD:
        stated = zstandard.frame_content_size(data)
    else:
        fields = Fields(data, "stored record")
        stated = fields.number()
        data = data[len(data) - fields.left :]
    if stated != size if size is not None else not 0 <= stated <= _MOST_BYTES:
        raise ValueError(f"{stated} bytes, expected {size}")
    if method == Method.ZSTD:
        return zstandard.ZstdDecompressor().decompress(data, max_output_size=stated)
    if method == Method.XZ:
        decoder = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=_filters(stated))
        out = decoder.decompress(data, stated + 1)
        if not decoder.eof:
            out += decoder.decompress(b"", 1)  # the end marker
        if not decoder.eof or decoder.unused_data:
            raise ValueError("the LZMA2 stream does not end with its record")
        return out
    if method == Method.PPMD and len(data) > 2:
        order, memory = data[0], data[1]
        if not 2 <= order <= 64 or not _MEMORY[0] <= memory <= _MEMORY[1] or stated > len(data) << _PPMD_RATIO:
            raise ValueError(f"PPMd of order {order} with 2^{memory} bytes, {stated} bytes in {len(data)}")
        import pyppmd

        # A decoder that runs out of input waits for more in a thread, and its end there corrupts memory. Zeros behind
        # the data keep it from that: they decode to the first symbol of each context, whose share is 2^-14 or more.
        padded = bytearray(len(data) + 2 * stated + 1024)
        padded[: len(data) - 2] = data[2:]
        return pyppmd.Ppmd7Decoder(order, 1 << memory).decode(padded, stated)  # SystemError for damaged data
    raise ValueError(f"method {method}")
