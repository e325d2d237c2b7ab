"""The outside of a pack: magic, version, a table of named sections with CRC-32 each, a SHA-256 over everything.

Layout, little-endian: `UPAK`, u16 version, u16 number of sections, then for each section its name (12 bytes, padded
with zeros), u32 length and u32 CRC-32; then the sections; then 32 bytes of SHA-256 of all that precedes.
"""

import hashlib
import struct
import zlib

from codec.errors import FormatError

MAGIC = b"UPAK"
VERSION = 3
_HEAD = struct.Struct("<4sHH")
_ENTRY = struct.Struct("<12sII")
_DIGEST = 32


def write_container(sections: dict[str, bytes]) -> bytes:
    """The file that holds `sections`, in their order."""
    table = b"".join(_ENTRY.pack(name.encode(), len(data), zlib.crc32(data)) for name, data in sections.items())
    body = _HEAD.pack(MAGIC, VERSION, len(sections)) + table + b"".join(sections.values())
    return body + hashlib.sha256(body).digest()


def read_container(blob: bytes) -> dict[str, bytes]:
    """The sections of a container.

    Raises:
        FormatError: not a pack, of a later version, truncated, or damaged (the section is named).
    """
    if blob[:4] != MAGIC:
        raise FormatError(f"pack: begins with {blob[:4]!r}, expected {MAGIC!r}; this is not a .pack file")
    if len(blob) < _HEAD.size:
        raise FormatError(f"pack: {len(blob)} bytes, expected at least {_HEAD.size}; the file is truncated")
    _, version, count = _HEAD.unpack_from(blob)
    if version != VERSION:
        raise FormatError(
            f"pack: format version {version}, this underpar reads {VERSION}; use the underpar that wrote it"
        )
    offset = _HEAD.size + count * _ENTRY.size
    if len(blob) < offset + _DIGEST:
        raise FormatError(f"pack: {len(blob)} bytes, expected at least {offset + _DIGEST}; the file is truncated")
    sections: dict[str, bytes] = {}
    damaged = []
    for i in range(count):
        raw_name, length, crc = _ENTRY.unpack_from(blob, _HEAD.size + i * _ENTRY.size)
        name = raw_name.rstrip(b"\0").decode("ascii", errors="backslashreplace")
        if offset + length + _DIGEST > len(blob):
            raise FormatError(
                f"pack: section {name!r} at offset {offset} has {length} bytes, but the file ends at {len(blob)}; "
                "the file is truncated or its table damaged"
            )
        sections[name] = blob[offset : offset + length]
        if zlib.crc32(sections[name]) != crc:
            damaged.append(f"{name!r} (offset {offset}, {length} bytes)")
        offset += length
    if offset + _DIGEST != len(blob):
        raise FormatError(
            f"pack: {len(blob)} bytes, expected {offset + _DIGEST}; bytes were added to or lost from the file"
        )
    if damaged:
        raise FormatError(f"pack: CRC-32 of section {', '.join(damaged)} is wrong; fetch the file again")
    digest = hashlib.sha256(blob[:-_DIGEST]).digest()
    if digest != blob[-_DIGEST:]:
        raise FormatError(
            f"pack: SHA-256 of the content is {digest.hex()[:16]}…, the file says {blob[-_DIGEST:].hex()[:16]}…; "
            "fetch the file again"
        )
    return sections
