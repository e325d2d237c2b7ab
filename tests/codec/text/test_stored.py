"""codec.text.stored: the best of general compressors, and payloads that lie."""

import lzma
import random
import tracemalloc
from contextlib import suppress

import pytest
import zstandard
from hypothesis import example, given, settings
from hypothesis import strategies as st

from codec.entropy.varint import varint
from codec.errors import FormatError
from codec.text.stored import Method, store, unstore

TEXT = b"".join(b"Line %d of a text that says much the same thing again and again.\n" % (n * n) for n in range(400))
NOISE = random.Random(0).randbytes(3000)


@settings(max_examples=50)
@given(st.binary(max_size=300))
@example(b"")
@example(TEXT)
@example(NOISE)
@example(bytes(100_000))
def test_any_bytes(data):
    payload = store(data)
    assert unstore(payload, len(data)) == unstore(payload) == data
    assert len(payload) <= len(data) + 1
    for size in (len(data) + 1, len(data) - 1, 1 << 40):
        if size >= 0:
            with pytest.raises(FormatError):
                unstore(payload, size)


@pytest.mark.parametrize("data", [TEXT, TEXT[:90], NOISE, bytes(70_000), TEXT * 30], ids=len)
def test_no_method_makes_fewer_bytes(data):
    import pyppmd

    sizes = [len(data), len(zstandard.ZstdCompressor(level=19).compress(data))]
    sizes.append(len(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME)))
    for order in (4, 6, 16):
        encoder = pyppmd.Ppmd7Encoder(order, 1 << 24)
        sizes.append(len(encoder.encode(data) + encoder.flush()))
    assert len(store(data)) <= 1.01 * min(sizes) + 6


def by_method(data: bytes) -> dict[Method, bytes]:
    import pyppmd

    encoder = pyppmd.Ppmd7Encoder(6, 1 << 16)
    filters = [{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 15}]
    size = varint(len(data))
    return {
        Method.RAW: b"\0" + data,
        Method.ZSTD: b"\1" + zstandard.ZstdCompressor(level=19).compress(data),
        Method.XZ: b"\2" + size + lzma.compress(data, lzma.FORMAT_RAW, filters=filters),
        Method.PPMD: b"\3" + size + b"\6\x10" + encoder.encode(data) + encoder.flush(),
    }


@pytest.mark.parametrize("method", Method)
def test_damaged_payloads(method):
    """No crash, no more bytes than are asked for: libraries of other people read what was never written."""
    payload, dice = by_method(TEXT)[method], random.Random(method)
    assert unstore(payload, len(TEXT)) == TEXT
    for n in range(400):
        broken = bytearray(payload)
        if n % 3 == 0:
            del broken[dice.randrange(1, len(broken)) :]
        elif n % 3 == 1:
            broken[dice.randrange(1, len(broken))] ^= dice.randrange(1, 256)
        else:
            broken[1:] = dice.randbytes(dice.randrange(len(payload)))
        with suppress(FormatError):
            assert len(unstore(bytes(broken), len(TEXT))) == len(TEXT)


@pytest.mark.parametrize("method", Method)
def test_bombs(method):
    payload = by_method(bytes(1 << 22))[method]
    tracemalloc.start()
    for size in (0, 1, 1 << 16):
        with pytest.raises(FormatError):
            unstore(payload, size)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < (1 << 23 if method == Method.RAW else 1 << 20)


@pytest.mark.parametrize(
    "payload",
    [
        b"\4",
        b"\xff" * 9,
        b"\1junk",
        b"\1" + b"\x50\x2a\x4d\x18\4\0\0\0abcd",
        b"\2",
        b"\2\x05",
        b"\3\5\6",
        b"\3\5\xff\x10a",
        b"\3\5\6\x40a",
    ],
    ids=bytes.hex,
)
def test_payloads_that_lie(payload):
    for size in (5, 1 << 20, None):
        with pytest.raises(FormatError, match="stored record"):
            unstore(payload, size)
