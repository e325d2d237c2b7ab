"""codec.pack.container: sections come back, and no damaged byte goes unnoticed."""

import hashlib
import struct
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codec.errors import FormatError
from codec.pack.container import (
    MAGIC,
    VERSION,
    Source,
    check_digest,
    read_container,
    read_section,
    read_table,
    write_container,
)

SECTIONS = st.dictionaries(st.text("abcdefghijklm-", min_size=1, max_size=12), st.binary(max_size=200), max_size=6)
SECTIONS_OF_SMALL = {"header": b"some bytes", "nothing": b"", "tensors": bytes(range(40))}
SMALL = write_container(SECTIONS_OF_SMALL)


@given(SECTIONS)
def test_round_trip_in_order(sections):
    found = read_container(write_container(sections))
    assert list(found.items()) == list(sections.items())


def test_golden_bytes():
    blob = write_container({"a": b"xyz", "bc": b""})
    table = b"a" + bytes(11) + struct.pack("<QI", 3, zlib.crc32(b"xyz")) + b"bc" + bytes(10) + bytes(12)
    end = table + struct.pack("<HI", 2, zlib.crc32(table))
    assert blob[:-32] == b"UPAK" + b"\x01\x00" + b"xyz" + end
    assert blob[-32:] == hashlib.sha256(blob[:-32]).digest()


def test_a_file_is_read_in_pieces(tmp_path):
    (tmp_path / "c").write_bytes(SMALL)
    source = Source(tmp_path / "c")
    table = read_table(source)
    assert {name: read_section(source, table, name) for name in table} == SECTIONS_OF_SMALL
    assert check_digest(source) == hashlib.sha256(SMALL).hexdigest()
    (tmp_path / "c").write_bytes(SMALL[:40] + b"!" + SMALL[41:])
    with pytest.raises(FormatError, match="SHA-256 of the content"):
        check_digest(source)


def test_every_flipped_bit_is_found():
    for position in range(len(SMALL)):
        for bit in range(8):
            broken = bytearray(SMALL)
            broken[position] ^= 1 << bit
            with pytest.raises(FormatError, match=r"^pack: "):
                read_container(bytes(broken))


def test_every_truncation_is_found():
    for size in range(len(SMALL)):
        with pytest.raises(FormatError, match=r"^pack: "):
            read_container(SMALL[:size])
    for extra in (b"\0", SMALL, SMALL[6:]):
        with pytest.raises(FormatError, match=r"table at its end is wrong|bytes were added or lost"):
            read_container(SMALL + extra)


def test_a_future_version_says_so():
    later = MAGIC + struct.pack("<H", VERSION + 1) + SMALL[6:]
    with pytest.raises(FormatError, match="format version 2, this underpar reads 1; use the underpar that wrote it"):
        read_container(later)


def test_a_damaged_section_is_named():
    offset = SMALL.index(bytes(range(40)))
    broken = SMALL[: offset + 5] + b"!" + SMALL[offset + 6 :]
    with pytest.raises(FormatError, match=rf"CRC-32 of section 'tensors' \(offset {offset}, 40 bytes\) is wrong"):
        read_container(broken)


@given(st.binary(max_size=200), st.booleans())
def test_anything_else_is_refused(data, magic):
    with pytest.raises(FormatError):
        read_container(MAGIC * magic + data)
