"""Read archives and packs as far as docs/formats.md needs no model; nothing of the project is imported."""

import hashlib
import json
import lzma
import struct
import zlib
from bisect import bisect_left
from itertools import accumulate

import zstandard

TAGS = {0: "stored", 1: "modelled", 2: "mixed", 3: "bytes", 4: "same", 5: "pack", 7: "footer"}
KINDS = ("file", "json_lines", "folder", "link")


class Fields:
    """Bytes that are read from the front."""

    def __init__(self, data, at=0):
        self.data, self.at = data, at

    def take(self, count):
        self.at += count
        assert self.at <= len(self.data)
        return self.data[self.at - count : self.at]

    def unpack(self, kind):
        return struct.unpack("<" + kind, self.take(struct.calcsize("<" + kind)))[0]

    def varint(self):
        byte = self.unpack("B")
        return byte if byte < 128 else byte - 128 + (self.varint() << 7)


def read_model(fields):
    flags = fields.unpack("B")
    assert flags & 15 == 1 and flags < 128
    pack = fields.take(8).hex() if flags & 16 else None
    return {"flags": flags & 240, "pack": pack, "window": fields.varint() if flags & 64 else None}


def unstored(payload, size):
    """The original bytes of a stored record; None for PPMd."""
    method = payload[0] if payload else 0
    if method < 2:
        return zstandard.decompress(payload[1:]) if method else payload[1:]
    fields = Fields(payload, 1)
    assert fields.varint() == size and method < 4
    lzma2 = [{"id": lzma.FILTER_LZMA2, "dict_size": 1 << min(max((size - 1).bit_length(), 12), 26)}]
    return lzma.decompress(payload[fields.at :], lzma.FORMAT_RAW, filters=lzma2) if method == 2 else None


def read_chunks(fields):
    """All chunks behind the header, in the order of the file."""
    while (begin := fields.at) < len(fields.data):
        head = fields.varint()
        crc = None if head & 7 == 7 else fields.unpack("I")
        chunk = {"tag": TAGS[head & 7], "offset": begin, "crc": crc, "payload": fields.take(head >> 3)}
        if crc is None:
            fields.take(5)  # CRC-32, and the byte that ends the varint of the size
            while fields.unpack("B") > 127:
                pass
        yield {**chunk, "bytes": fields.at - begin}


def read_members(fields, count, sizes):
    ends, at, record, found = [0, *accumulate(sizes)], 0, 0, []
    for n in range(count):
        flags = fields.unpack("B")
        more, mode = flags & 128, (None, 0o644, 0o755, 0)[flags >> 2 & 3]
        member = {"flags": flags & 240, "kind": KINDS[flags & 3], "size": 0, "begun": found[-1]["begun"] if more else n}
        member["name"] = found[-1]["name"] if more else fields.take(fields.varint())
        member["mode"] = fields.varint() if mode == 0 else mode
        member["time"] = fields.unpack("q") if flags & 16 else None
        if flags & 64:
            back = n - fields.varint()
            member["size"] = sum(other["size"] for other in found if other["begun"] == back)
        elif not flags & 2:
            member["size"] = ends[-1] - at if flags & 32 else fields.varint()
            at += 0 if flags & 1 else member["size"]
            record = bisect_left(ends, at, record)
        if member["kind"] == "json_lines":
            member["documents"] = fields.varint()
            record += member["documents"] + 1
            at = ends[record]
        if member["kind"] == "link":
            member["target"] = fields.take(fields.varint())
        found.append(member)
    assert not found or at == ends[-1]
    return found


def read_archive(data):
    """Opening and header, flags, members, gaps and records of an archive, and the pack that it holds."""
    fields, size = Fields(data, 3), Fields(data[-2:-11:-1])
    opening, first = read_model(fields), fields.at
    begin, end = len(data) - size.varint(), len(data) - 5 - size.at
    footer = Fields(data[:end], begin)
    assert (data[:3], data[-1:], footer.varint()) == (b"UPZ", b"Z", 8 * (end - footer.at) + 7)
    assert zlib.crc32(data[:first] + data[begin:end]) == struct.unpack_from("<I", data, end)[0]
    flags, index = footer.unpack("B"), footer.data[footer.at :]
    index = Fields(zstandard.decompress(index) if flags & 8 else index)
    header = read_model(index) if flags & 16 else opening
    count = 1 if flags & 1 else index.varint()
    lengths, sizes = [index.varint() for _ in range(count - 1)], [index.varint() for _ in range(count)]
    gaps = [(index.varint(), index.varint()) for _ in range(index.varint() if flags & 4 else 0)]
    members = read_members(index, 1 if flags & 2 else index.varint(), sizes)
    *chunks, last = read_chunks(fields)
    records = [chunk for chunk in chunks if chunk["tag"] not in ("pack", "footer")]
    assert index.at == len(index.data) and last["offset"] == begin and len(records) == count
    assert [record["bytes"] for record in records[:-1]] == lengths
    for n, record in enumerate(records):
        record["size"] = sizes[n]
        assert record["offset"] == first + sum(lengths[:n]) + sum(gap for at, gap in gaps if at <= n)
        if record["tag"] == "same":
            other = records[n - Fields(record["payload"]).varint()]
            assert (other["crc"], other["size"]) == (record["crc"], record["size"]) and other["tag"] != "same"
        if record["tag"] == "stored" and (plain := unstored(record["payload"], record["size"])) is not None:
            assert (len(plain), zlib.crc32(plain)) == (record["size"], record["crc"])
    packs = [chunk["payload"] for chunk in chunks if chunk["tag"] == "pack"]
    assert all(zlib.crc32(pack) == chunks[0]["crc"] for pack in packs)
    found = {"opening": opening, "header": header, "flags": flags, "members": members, "gaps": gaps}
    return {**found, "records": records, "packs": packs}


def read_part(data):
    assert zlib.crc32(data[:-4]) == int.from_bytes(data[-4:], "little")
    return data[0], data[1:-4]


def read_pack(data):
    """Sections of a pack, unpacked but for the tensors, the header, and tensors, batches and files with their bytes."""
    assert struct.unpack_from("<4sH", data) == (b"UPAK", 1)
    count, crc = struct.unpack_from("<HI", data, len(data) - 38)
    table, sections = data[len(data) - 38 - 24 * count : -38], {}
    assert hashlib.sha256(data[:-32]).digest() == data[-32:] and zlib.crc32(table) == crc and count <= 16
    fields = Fields(data[: -38 - len(table)], 6)
    for name, length, crc in struct.iter_unpack("<12sQI", table):
        name, section = name.rstrip(b"\0").decode(), fields.take(length)
        assert zlib.crc32(section) == crc and name not in sections
        sections[name] = zstandard.decompress(section) if name != "tensors" and section else section
    header, parts = json.loads(sections["header"]), Fields(sections["tensors"])
    vectors, content = Fields(header["vectors"]), Fields(sections.get("files", b""))
    tensors = [(entry, [read_part(parts.take(n)) for n in entry["parts"]]) for entry in header["tensors"]]
    batches = [(vectors.take(many), read_part(parts.take(n))) for many, n in header["batches"]]
    files = {name: content.take(n) for name, n in header.get("files", {}).items()}
    assert all(each.at == len(each.data) for each in (fields, parts, vectors, content))
    return {"sections": sections, "header": header, "tensors": tensors, "batches": batches, "files": files}
