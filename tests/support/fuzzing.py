"""Mutations of small archives and packs, by number: the same number makes the same mutation.

*Damage* is what wires and disks do, and editors: whoever reads it must refuse it or restore the original. A *forgery*
has its checksums repaired behind the change, so that what lies deeper is reached: it may say something else, but never
ends in an error that is not ours, and no document comes out that was not put in.
"""

import json
import struct
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from io import BytesIO
from typing import Any

import numpy as np
import torch
import zstandard

import codec
from codec.archive.format import Tag, read_contents, scan, write_chunk, write_footer, write_header
from codec.archive.reader import ArchiveReader
from codec.archive.writer import ArchiveWriter
from codec.errors import CodecError
from codec.pack.container import read_container, write_container
from codec.pack.reader import Pack
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
    if name in ("header", "config", "tokenizer", "vectors") and random.integers(4):
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
        found = ArchiveReader(BytesIO(changed), pack(), most_bytes=1 << 22).decode()
        if forged:
            return set(found) <= set(DOCUMENTS)
        return found == original or changed in _others()

    return "forged" if forged else "damaged", outcome(attempt)


def pack_mutation(number: int) -> tuple[str, str]:
    """As `archive_mutation`, of a pack; a forged one that opens must code text and restore it, or refuse to."""
    random = np.random.default_rng([2, number])
    forged = not random.integers(3)
    changed = forge_pack(blob(), random) if forged else damage(blob(), archives()[0] + blob(), random)

    def attempt() -> bool:
        opened = codec.open(changed)
        if forged and opened.config and opened.tokenizer:
            return codec.decode(opened, codec.encode(opened, DOCUMENTS[:1])) == DOCUMENTS[:1]
        state, original = opened.state_dict(), pack().state_dict()
        return forged or all(torch.equal(state[name], original[name]) for name in original)

    return "forged" if forged else "damaged", outcome(attempt)
