"""Mutations of small archives and packs, by number: the same number makes the same mutation.

*Damage* is what wires and disks do, and editors: whoever reads it must refuse it or restore the original. A *forgery*
has its checksums repaired behind the change, so that what lies deeper is reached: it may say something else, but never
ends in an error that is not ours, and no document comes out that was not put in.
"""

import json
import lzma
import struct
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from io import BytesIO
from typing import Any
from zlib import crc32

import numpy as np
import torch
import zstandard

import codec
from codec.archive.format import Tag, read_contents, write_chunk, write_footer, write_header
from codec.archive.members import ROOT, Kind, Member
from codec.archive.reader import ArchiveReader
from codec.archive.whole.salvage import scan
from codec.archive.writer import ArchiveWriter, ChunkWriter, header_of
from codec.cm.compressor import compress
from codec.entropy.varint import varint
from codec.errors import CodecError
from codec.pack.container import read_container, write_container
from codec.pack.reader import Pack
from codec.pack.writer import Extras, PackJob
from codec.text.documents import Record
from codec.text.open_coder import default_policy
from codec.text.solid.blocks import open_blocks
from codec.text.stored import Method, _filters, _ppmd
from tests.support.helpers import PLAIN, lossless_tokenizer, random_weights

CONFIG = replace(PLAIN, vocab_size=512, num_layers=1, model_dim=16, num_heads=2, num_kv_heads=1)

DOCUMENTS = [b"Some words of a text.", b"", b"\xff\x00", "▁ zwei ☃".encode(), b"word " * 40]


@cache
def blob() -> bytes:
    """A pack as small as they get, and nearly uniform, so that damaged records do not decode to long texts."""
    weights = random_weights(CONFIG)
    weights["tok_emb.weight"] *= 0.1
    return codec.compress(weights, CONFIG, lossless_tokenizer())


@cache
def pack() -> Pack:
    return codec.open(blob())


@cache
def archives() -> list[bytes]:
    """All through the model; as it comes; appended to; empty."""
    found = []
    for model_only, parts in ((True, [DOCUMENTS]), (False, [DOCUMENTS]), (True, [DOCUMENTS[:2], DOCUMENTS[2:]])):
        stream = BytesIO()
        for n, part in enumerate(parts):
            with ArchiveWriter(stream, pack(), append=n > 0) as writer:
                writer.append(part, model_only)
        found.append(stream.getvalue())
    return [*found, codec.encode(pack(), [])]


@cache
def _others() -> list[bytes]:
    """What else an archive may be turned into: another one, or what it was before documents were appended."""
    longer = archives()[2]
    offsets = read_contents(BytesIO(longer)).offsets
    return [*archives(), longer[: offsets[2]]]


TEXT = b"To be, or not to be: that is the question.\n" * 3
BLOCKS = (TEXT, bytes(range(256)), b"word " * 60, b'{"text": "a", "n": 1}\n' * 4)


@cache
def solid_archives() -> list[bytes]:
    """Archives of files, in blocks of both kinds, under every general compressor, and with every kind of member."""
    solid, several = open_blocks(pack()), Member("one", Kind.FILE, len(TEXT), 0o640, 1)
    assert solid._mixing
    (coded,) = solid._mixing.encode([TEXT])
    mixed = [(Tag.MIXED, varint(len(TEXT)) + (coded.data if coded else b""))]
    contexts = [(Tag.BYTES, varint(len(block)) + compress(block)) for block in BLOCKS]
    stored = [(Tag.STORED, payload) for payload in _stored(TEXT)]
    found = []
    for records, texts, members in (
        (mixed, [TEXT], [several]),
        (contexts, BLOCKS, [Member("all", size=sum(map(len, BLOCKS)))]),
        (stored, [TEXT] * len(stored), [Member(f"{n}", size=len(TEXT)) for n in range(len(stored))]),
        (
            [*mixed, contexts[0], (Tag.SAME, varint(1)), stored[-1]],
            [TEXT] * 4,
            [
                Member(ROOT, Kind.FOLDER, mode=0o700, mtime=-1),
                replace(several, size=2 * len(TEXT)),
                Member("d/two", size=len(TEXT)),
                Member("d/copy", back=2, size=2 * len(TEXT)),
                Member("link", Kind.LINK, target="../no/where"),
                Member("last", size=len(TEXT)),
            ],
        ),
    ):
        chunks = ChunkWriter(stream := BytesIO(), header_of(pack(), default_policy(pack())))
        for (tag, payload), text in zip(records, texts, strict=True):
            chunks.add(Record(tag, payload, crc32(text), len(text), len(text), 0, 0.0, 0.0))
        chunks.close(members)
        found.append(stream.getvalue())
    return found


def _stored(text: bytes) -> list[bytes]:
    """A payload under each general compressor."""
    return [
        bytes([Method.RAW]) + text,
        bytes([Method.ZSTD]) + zstandard.ZstdCompressor(level=19).compress(text),
        bytes([Method.XZ]) + varint(len(text)) + lzma.compress(text, lzma.FORMAT_RAW, filters=_filters(len(text))),
        _ppmd(text)[0],
    ]


def damage(data: bytes, other: bytes, random: np.random.Generator) -> bytes:
    """`data` with one to three changes, some of which bring in parts of `other`."""
    for _ in range(random.integers(1, 4)):
        data = _changed(data, other, random)
    return data


def _changed(data: bytes, other: bytes, random: np.random.Generator) -> bytes:
    at, end = sorted(random.integers(0, len(data) + 1, 2).tolist())
    near = min(at + int(random.integers(1, 9)), len(data))
    part = other[slice(*sorted(random.integers(0, len(other) + 1, 2).tolist()))]
    noise = random.bytes(int(random.integers(1, 9)))
    bit, byte = 1 << int(random.integers(8)), int(random.integers(1, 256))
    ways = (
        data[:at] + bytes(b ^ bit for b in data[at : at + 1]) + data[at + 1 :],
        data[:at] + bytes(b ^ byte for b in data[at : at + 1]) + data[at + 1 :],
        data[:at],
        data[at:],
        data[:at] + data[near:],
        data[:at] + data[end:],
        data[:at] + noise + data[at:],
        data[:at] + noise + data[near:],
        data[:end] + data[at:],
        data[:at] + bytes(near - at) + data[near:],
        data[:at] + part + data[end:],
        data + part,
        data[:at] + b"\xff\xff\xff\xff" + data[at + 4 :],
        data[:at] + struct.pack("<I", len(data) + byte) + data[at + 4 :],
    )
    return ways[random.integers(len(ways))]


NUMBERS = (
    0,
    -1,
    1,
    2,
    7,
    255,
    65_536,
    1 << 20,
    1 << 28,
    1 << 31,
    1 << 63,
    10**40,
    -(10**9),
    True,
    None,
    0.5,
    "x",
    [],
    {},
)
"""What a lie puts in the place of a value."""


def lie(value: Any, random: np.random.Generator) -> Any:
    """A JSON value with one value somewhere in it replaced, left out or put in twice."""
    if isinstance(value, (dict, list)) and value and random.integers(8):
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        key = keys[random.integers(len(keys))]
        changed = value.copy()
        act = random.integers(10)
        if act == 0:
            del changed[key]
        elif act == 1 and isinstance(changed, list):
            changed.insert(key, changed[key])
        else:
            changed[key] = lie(value[key], random)
        return changed
    if type(value) in (int, float) and random.integers(2):
        return value + int(random.integers(-3, 4))
    if isinstance(value, str) and random.integers(2):
        return value[: random.integers(len(value) + 1)] + "/../\0é"[random.integers(6) :]
    return NUMBERS[random.integers(len(NUMBERS))]


def forge_archive(data: bytes, random: np.random.Generator) -> bytes:
    """An archive whose index or chunks lie, with checksums that fit."""
    contents = read_contents(BytesIO(data))
    chunks = [chunk for _, chunk in scan(BytesIO(data)) if chunk.tag != Tag.FOOTER]
    lengths, sizes = contents.lengths.copy(), contents.sizes.copy()
    kind = random.integers(4)
    if kind == 0 and len(sizes):
        sizes[random.integers(len(sizes))] = random.choice([0, 1, 300, 1 << 20, 1 << 29, 1 << 40])
    elif kind == 1 and len(lengths):
        lengths[random.integers(len(lengths))] += int(random.integers(-9, 9))
    elif kind == 2 and chunks:
        at = int(random.integers(len(chunks)))
        payload = damage(chunks[at].payload or b"\0", data, random)
        chunks[at] = replace(chunks[at], payload=payload)
    elif chunks:
        at = int(random.integers(len(chunks)))
        chunks[at] = replace(chunks[at], tag=Tag(random.choice(list(Tag))))
    body = [write_chunk(chunk.tag, chunk.crc, chunk.payload) for chunk in chunks]
    if kind != 1:
        lengths = np.array([len(chunk) for chunk in body], np.int64)
    footer = write_footer(replace(contents, lengths=np.maximum(lengths, 0), sizes=sizes, gaps=[]))
    return write_header(contents.opening) + b"".join(body) + footer


def forge_pack(data: bytes, random: np.random.Generator) -> bytes:
    """A pack of which one section lies, with checksums that fit."""
    sections = read_container(data)
    names = list(sections)
    name = names[random.integers(len(names))]
    section = sections[name]
    if section and name in ("header", "config", "tokenizer", "files") and random.integers(4):
        plain = zstandard.ZstdDecompressor().decompress(section)
        if name in ("header", "config") and random.integers(4):
            plain = json.dumps(lie(json.loads(plain), random)).encode()
        else:
            plain = damage(plain, plain, random)
        section = zstandard.ZstdCompressor(level=1).compress(plain)
    else:
        section = damage(section, section, random)
    sections[name] = section
    if not random.integers(20):
        del sections[names[random.integers(len(names))]]
    return write_container(sections)


def outcome(attempt: Callable[[], bool]) -> str:
    """`right`, `wrong` or `refused`; an error that is not a CodecError goes through."""
    try:
        return "right" if attempt() else "wrong"
    except CodecError:
        return "refused"


@cache
def _usual() -> ArchiveReader:
    return ArchiveReader(BytesIO(archives()[0]), pack())


def opened(data: bytes) -> ArchiveReader:
    """A reader; one coder serves all archives whose header is the usual one."""
    reader, usual = ArchiveReader(BytesIO(data), pack(), most_bytes=1 << 22), _usual()
    if reader.contents.header == usual.contents.header:
        reader.__dict__ |= {"coder": usual.coder, "solid": usual.solid}
    return reader


def archive_mutation(number: int) -> tuple[str, str]:
    """What kind of mutation this is, and what came of reading it: `wrong` must not be."""
    random = np.random.default_rng([1, number])
    data = archives()[random.integers(len(archives()))]
    if forged := not random.integers(3):
        changed = forge_archive(data, random)
    else:
        changed = damage(data, archives()[random.integers(len(archives()))], random)
    original = [] if data == archives()[-1] else DOCUMENTS

    def attempt() -> bool:
        found = opened(changed).decode()
        if forged:
            return set(found) <= set(DOCUMENTS)
        return found == original or changed in _others()

    return "forged" if forged else "damaged", outcome(attempt)


def solid_mutation(number: int) -> tuple[str, str]:
    """As `archive_mutation`, of `solid_archives`, records and files."""
    random = np.random.default_rng([3, number])
    all_of_them = solid_archives()
    data = all_of_them[random.integers(len(all_of_them))]
    if forged := not random.integers(3):
        changed = forge_archive(data, random)
    else:
        changed = damage(data, all_of_them[random.integers(len(all_of_them))], random)

    def attempt() -> bool:
        found, original = restored(changed), restored(data)
        if forged:
            return set(found[0]) <= {*BLOCKS}
        return found == original or changed in all_of_them

    return "forged" if forged else "damaged", outcome(attempt)


def restored(data: bytes) -> tuple[list[bytes], list[tuple[str, bytes]]]:
    """The records and the files of an archive."""
    reader = opened(data)
    records = list(reader.records(range(len(reader.contents.sizes))))
    return records, [(name, reader.open(name).read()) for name in reader.names()]


@cache
def packs() -> list[bytes]:
    """A model's pack; weights alone by rows, on a grid, exactly and in batches; a folder's, with twins and files."""
    random = torch.Generator().manual_seed(1)
    large = torch.randn(40, 40, generator=random)
    state = {
        "large": large,
        "half": torch.randn(40, 30, generator=random).bfloat16(),
        "whole": torch.arange(50).reshape(5, 10),
        "bools": torch.arange(9) % 2 == 0,
        "complex": torch.randn(7, generator=random, dtype=torch.complex64),
        "empty": torch.zeros(0, 3),
        "twin": large,
    }
    extras = Extras({"format": "pt"}, {"config.json": b"{}", "vocab.txt": TEXT})
    return [
        blob(),
        codec.compress(state),
        codec.compress(state, budget=2600),
        codec.compress(state, lossless=["*"]),
        PackJob(state, extras=extras).run().read(),
    ]


def pack_mutation(number: int) -> tuple[str, str]:
    """As `archive_mutation`, of a pack; a forged one that opens must code text and restore it, or refuse to."""
    random = np.random.default_rng([2, number])
    forged = not random.integers(3)
    data = packs()[random.integers(len(packs()))]
    changed = forge_pack(data, random) if forged else damage(data, archives()[0] + data, random)

    def attempt() -> bool:
        found = codec.open(changed)
        state = found.state_dict()
        if not forged:
            original = codec.open(data).state_dict()
            return changed in packs() or all(torch.equal(state[name], original[name]) for name in original)
        if found.config and found.tokenizer:
            found.exact()
            if number % 20 == 0:  # a backend is compared with the reference first, which takes most of the time
                return codec.decode(found, codec.encode(found, DOCUMENTS[:1])) == DOCUMENTS[:1]
        return found.files is not None

    return "forged" if forged else "damaged", outcome(attempt)
