"""Code numbers without loss: planes of bytes, the most significant first, each plane by the method that suits it best.

A plane has the bytes of one significance, since exponents resemble each other and mantissas are noise. The sign of a
floating-point number moves to the end of its bits, so that the first byte of a float32 or bfloat16 is its exponent (as
in ZipNN, Hershcovitch et al. 2024). A plane is stored, or compressed by zstandard (which finds repetitions), or coded
under one adaptive table (which comes closest to the entropy of exponents). Where whole numbers repeat, zstandard over
the unsplit bytes may be shorter than any of these.
"""

import struct
from enum import IntEnum

import numpy as np
import zstandard
from numpy.typing import NDArray

from codec.entropy.adaptive_table import Alphabet, decode_symbols, encode_symbols
from codec.errors import FormatError

BLOCK = 1 << 22
"""Bytes that are split into planes together."""


class PlaneMethod(IntEnum):
    """How a plane is coded, or a block that is not split into planes."""

    STORED = 0
    ZSTD = 1
    TABLE = 2
    WHOLE = 3  # the unsplit block under zstandard


_STORED, _ZSTD, _TABLE, _WHOLE = PlaneMethod
_BYTES = (Alphabet(0, 255),)
_HEAD = struct.Struct("<BI")  # method and length of a plane
_WORDS = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
_SAMPLE = 1 << 16  # bytes of a plane whose entropy says whether coding pays


def encode_planes(data: NDArray[np.uint8], width: int, floating: bool) -> bytes:
    """Return the code of the bytes of numbers.

    Args:
        data: uint8 [n].
        width: bytes of a number: 1, 2, 4 or 8.
        floating: whether the highest bit of a number is a sign.
    """
    parts = []
    for begin in range(0, len(data), BLOCK):
        block = data[begin : begin + BLOCK]
        apart = b"".join(_plane(plane) for plane in _split(block, width, floating))
        if width > 1 or len(apart) < len(block):
            whole = _zstd(block)
            if len(whole) < len(apart):
                apart = _HEAD.pack(_WHOLE, len(whole)) + whole
        parts.append(apart)
    return b"".join(parts)


def decode_planes(stream: bytes, size: int, width: int, floating: bool) -> NDArray[np.uint8]:
    """Return the `size` bytes that `encode_planes` coded, uint8 [size].

    Args:
        stream: of `encode_planes`.
        size: bytes of all numbers.
        width: as of `encode_planes`.
        floating: as of `encode_planes`.

    Raises:
        FormatError: the stream does not hold exactly `size` bytes.
    """
    found, at = np.empty(size, np.uint8), 0
    for begin in range(0, size, BLOCK):
        block = min(BLOCK, size - begin)
        planes: list[NDArray[np.uint8]] = []
        whole = False
        while len(planes) < width and not whole:
            if at + _HEAD.size > len(stream):
                raise FormatError(f"planes: stream of {len(stream)} bytes ends too early; the file is damaged")
            method, length = _HEAD.unpack_from(stream, at)
            at += _HEAD.size
            whole = method == _WHOLE
            count = block if whole else block // width
            planes.append(_read(method, stream[at : at + length], length, count))
            at += length
        if whole and len(planes) > 1:
            raise FormatError("planes: a block of other bytes than expected; the file is damaged")
        found[begin : begin + block] = planes[0] if whole else _join(planes, width, floating)
    if at != len(stream):
        raise FormatError(f"planes: {len(stream) - at} bytes too many; the file is damaged")
    return found


def entropy(data: NDArray[np.uint8], width: int, floating: bool) -> float:
    """Return about how many bytes `encode_planes` needs: by frequencies in a sample of each plane, or by repetitions.

    A mask of 512 x 512 that has two values takes 1,000 bytes for what repeats, and 131,000 by its frequencies.
    """
    step = max(1, len(data) // width // _SAMPLE)
    sample = data.reshape(-1, width)[::step].reshape(-1)
    apart = sum(_cost(plane) for plane in _split(sample, width, floating)) * len(data) / max(1, len(sample))
    return min(apart, float(len(zstandard.ZstdCompressor(level=1).compress(data.data))))


def _cost(plane: NDArray[np.uint8]) -> float:
    counts = np.bincount(plane, minlength=1)
    counts = counts[counts > 0]
    return float(counts @ np.log2(plane.size / counts)) / 8 if plane.size else 0.0


def _split(data: NDArray[np.uint8], width: int, floating: bool) -> NDArray[np.uint8]:
    """Return the planes of numbers, the most significant first: uint8 [width, n]."""
    words = data.view(_WORDS[width])
    if floating:
        words = (words << 1) | (words >> (8 * width - 1))
    return np.ascontiguousarray(words.view(np.uint8).reshape(-1, width)[:, ::-1].T)


def _join(planes: list[NDArray[np.uint8]], width: int, floating: bool) -> NDArray[np.uint8]:
    words = np.ascontiguousarray(np.stack(planes[::-1], 1)).reshape(-1).view(_WORDS[width])
    if floating:
        words = (words >> 1) | (words << (8 * width - 1))
    return words.view(np.uint8)


def _plane(plane: NDArray[np.uint8]) -> bytes:
    """Code a plane by the method that makes it shortest."""
    best, method = plane.tobytes(), _STORED
    step = max(1, len(plane) // _SAMPLE)
    if len(plane) and _cost(plane[::step]) * step < 0.995 * len(plane):
        table = encode_symbols([(0, plane)], _BYTES)[0]
        if len(table) < len(best):
            best, method = table, _TABLE
    if method == _TABLE or len(plane) <= _SAMPLE:
        packed = _zstd(plane)
        if len(packed) < len(best):
            best, method = packed, _ZSTD
    return _HEAD.pack(method, len(best)) + best


def _read(method: int, stream: bytes, length: int, count: int) -> NDArray[np.uint8]:
    if len(stream) != length:
        raise FormatError(f"planes: {len(stream)} bytes, expected {length}; the file is damaged")
    if method == _TABLE:
        return decode_symbols(stream, [(0, count)], _BYTES)[0].astype(np.uint8)
    if method in (_ZSTD, _WHOLE):
        try:
            if zstandard.frame_content_size(stream) not in (-1, count):  # which the library would believe
                raise FormatError(f"planes: a frame of other than {count} bytes; the file is damaged")
            stream = zstandard.ZstdDecompressor().decompress(stream, max_output_size=count)
        except zstandard.ZstdError as error:
            raise FormatError(f"planes: not a zstandard frame ({error})") from error
    elif method != _STORED:
        raise FormatError(f"planes: method {method}, expected 0 to {_WHOLE}; the file is damaged")
    if len(stream) != count:
        raise FormatError(f"planes: a plane of {len(stream)} bytes, expected {count}; the file is damaged")
    return np.frombuffer(stream, np.uint8)


def _zstd(data: NDArray[np.uint8]) -> bytes:
    level = 19 if len(data) <= _SAMPLE else 3
    return zstandard.ZstdCompressor(level=level, write_content_size=False, write_checksum=False).compress(
        data.tobytes()
    )
