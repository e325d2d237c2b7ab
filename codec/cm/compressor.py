"""Code bytes without a language model; the kind of the bytes decides the contexts and the primer.

A payload is a byte for the kind of data, the length of the data's records in two bytes (little-endian) where there are
records, and the code. The payload of no bytes is empty.
"""

from functools import lru_cache
from importlib.resources import files

import numpy as np
import zstandard
from numpy.typing import NDArray

from codec.cache import kept
from codec.cm.predictor import NONE, learn_bit, predict_bit, start_byte
from codec.cm.state import Stream, copy, new_stream
from codec.compiled import compiled
from codec.console import Advance, ignore_progress
from codec.entropy import range_coder
from codec.entropy.adaptive_bit import code_bit
from codec.errors import FormatError

PRIMERS = ("prose", "c", "html", "lisp", "man", "python")
"""Texts, one of which a stream sees before its first byte; the kinds of data 1 to 6."""

PLAIN, RECORDS = 0, 255
"""Kinds: text without a primer, and records."""

LONGEST_RECORD = 1024

_LOOK = 1 << 18  # bytes from which records are judged
_TRIED = 1 << 13  # with which each likely kind is tried
_LIKELY = 3  # primers that are tried
_ODD = 50  # text has a control character in so many bytes at most
_SHORT = 15  # binary logarithm of the bytes of a short text, whose time is that of its primers: they are cached
_CHUNK = 1 << 16
_BYTE_ROOM = 16  # bytes that a byte may add to a code: two a bit


@compiled
def _code(s, coder, code, data, decode):
    """Encode bytes into the code of a range coder, or decode bytes from the code into `data`."""
    for n in range(len(data)):
        byte, wanted = 0, np.int64(data[n])
        for k in range(8):
            bit = code_bit(coder, code, predict_bit(s, NONE), (wanted >> (7 - k)) & 1, decode)
            learn_bit(s, bit)
            byte = byte << 1 | bit
        data[n] = byte


def compress(data: bytes, kind: int | None = None) -> bytes:
    """Return the payload of any bytes.

    Args:
        data: any bytes.
        kind: of PRIMERS, PLAIN or RECORDS; the kind that makes the fewest bytes of the beginning, if None.

    >>> decompress(compress(b"to be or not to be"), 18)
    b'to be or not to be'
    """
    if not data:
        return b""
    if kind is None:
        kinds = _kinds_of(data)
        payloads = [compress(data[:_TRIED], each) for each in kinds] if len(kinds) > 1 else [b""]
        best = min(range(len(kinds)), key=lambda n: len(payloads[n]))
        return payloads[best] if len(kinds) > 1 and len(data) <= _TRIED else compress(data, kinds[best])
    record = _record_length(data) if kind == RECORDS else 0
    s, coder = _stream(kind, record, len(data)), range_coder.new_encoder()
    values, out = np.frombuffer(data, np.uint8).copy(), np.zeros(0, np.uint8)
    for at in range(0, len(values), _CHUNK):
        chunk = values[at : at + _CHUNK]
        if len(out) < int(coder[2]) + len(chunk) * _BYTE_ROOM + 64:
            out = np.concatenate((out, np.zeros(len(out) + _CHUNK * _BYTE_ROOM + 64, np.uint8)))
        _code(s, coder, out, chunk, False)
    head = bytes([kind]) + (record.to_bytes(2, "little") if record else b"")
    return head + out[: range_coder.finish(coder, out)].tobytes()


def decompress(payload: bytes, size: int, advance: Advance = ignore_progress) -> bytes:
    """Return the `size` bytes of a payload, in time and memory that `size` bounds. Raises FormatError for any other.

    `advance` is called with bytes of payload.
    """
    if not size and not payload:
        return b""
    kind = payload[0] if payload else -1
    record = int.from_bytes(payload[1:3], "little") if kind == RECORDS else 0
    if not size or not (0 <= kind <= len(PRIMERS) or (kind == RECORDS and 1 <= record <= LONGEST_RECORD)):
        raise FormatError(f"context mixing: kind {kind}, records of {record} bytes; the archive is damaged")
    code = np.frombuffer(payload, np.uint8, offset=3 if record else 1).copy()
    s, coder, values = _stream(kind, record, size), np.zeros(3, np.uint64), np.zeros(size, np.uint8)
    range_coder.start_decoder(coder, code)
    for at in range(0, size, _CHUNK):
        _code(s, coder, code, chunk := values[at : at + _CHUNK], True)
        advance(len(payload) * len(chunk) / size)
        if int(coder[2]) > len(code) + range_coder.CODE_BYTES:
            break
    if not range_coder.ended(coder, len(code)):
        raise FormatError(f"context mixing: the code of {len(code)} bytes does not end with byte {size} of the text")
    return values.tobytes()


@lru_cache
def primer(name: str) -> bytes:
    """Read a primer, a text that is part of this package."""
    return files("codec.cm").joinpath("primers", f"{name}.txt").read_bytes()


@lru_cache(maxsize=_LIKELY + 1)
def _primed(kind: int, bits: int) -> Stream:
    """Make a stream that has seen a primer, for text of up to 2^bits bytes."""
    s = new_stream(1 << bits)

    def learn() -> bytes:
        text = np.frombuffer(primer(PRIMERS[kind - 1]), np.uint8).copy()
        start_byte(s)
        _code(s, range_coder.new_encoder(), np.zeros(len(text) * _BYTE_ROOM, np.uint8), text, False)
        return zstandard.ZstdCompressor(level=1).compress(b"".join(part.tobytes() for part in s))

    if bits > _SHORT:
        learn()
        return s
    data, at = zstandard.ZstdDecompressor().decompress(kept(f"primed/{kind}", learn)), 0
    for part in s:
        part.reshape(-1).view(np.uint8)[:] = np.frombuffer(data, np.uint8, part.nbytes, at)
        at += part.nbytes
    return s


def _stream(kind: int, record: int, size: int) -> Stream:
    if kind in (PLAIN, RECORDS):
        s = new_stream(size, record)
        start_byte(s)
        return s
    return copy(_primed(kind, max(_SHORT, size.bit_length())))


def _kinds_of(data: bytes) -> list[int]:
    """Return the kinds that data may be: only RECORDS where there are many control characters, else some text, too.

    The text is PLAIN or has a primer, one of those with which zstandard makes fewest bytes of the data.
    """
    head = np.frombuffer(data[:_LOOK], np.uint8)
    control = (head < 32) & (head != 9) & (head != 10) & (head != 13) & (head != 12)
    if int(control.sum()) * _ODD > len(head):
        return [RECORDS]
    sizes = []
    for name in PRIMERS:
        known = zstandard.ZstdCompressionDict(primer(name), dict_type=zstandard.DICT_TYPE_RAWCONTENT)
        sizes.append(len(zstandard.ZstdCompressor(level=9, dict_data=known).compress(data[:_TRIED])))
    likely = sorted(range(len(PRIMERS)), key=lambda n: sizes[n])[:_LIKELY]
    return [*(1 + n for n in likely), PLAIN, RECORDS]


def _record_length(data: bytes) -> int:
    """Return the shortest distance at which nearly as many bytes are equal as at the best distance.

    Bytes 0 and 255 do not count.
    """
    values: NDArray[np.uint8] = np.frombuffer(data[:_LOOK], np.uint8)
    telling = (values != 0) & (values != 255)
    distances = range(1, min(LONGEST_RECORD, len(values) - 1) + 1)
    equal = [int(((values[n:] == values[:-n]) & telling[n:]).sum()) for n in distances]
    return next((n for n, found in zip(distances, equal, strict=True) if 10 * found >= 9 * max(equal)), 1)
