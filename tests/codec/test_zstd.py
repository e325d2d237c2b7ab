"""codec.zstd: what is shrunk comes back, and a frame that is none, or too large, is refused."""

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from codec.errors import CodecError
from codec.zstd import shrink, unshrink


@given(st.binary(max_size=1000))
def test_shrink(data):
    assert unshrink(shrink(data), len(data), "text") == data
    assert shrink(data) == shrink(data)


def test_unshrink_refusals():
    bomb = shrink(bytes(10_000_000))
    unsized = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(1000))
    for data in (b"", b"junk", bomb, unsized, bomb[:-1], bomb[:9], b"\x50\x2a\x4d\x18\4\0\0\0abcd"):
        with pytest.raises(CodecError, match=r"^text: "):
            unshrink(data, 1 << 20, "text")
