"""Lossless stages behind a quantizer, all on the same integers: integers to bytes, and back to the same integers.

A model is int8 tables with float16 row steps, and other tensors unchanged. Whole-stream stages (zlib, zstd, brotli)
compress the tensors one after the other. Grouped stages follow the challenge's best submission. They take tables of one
role together, columns first, and sort the rows of some tables so that neighbours are similar. Each group goes through
an archiver, the rest through brotli.
"""

import json
import re
import shutil
import struct
import subprocess
import tempfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import brotli
import numpy as np
import zstandard
from numpy.typing import NDArray

from codec.compiled import making
from codec.errors import CodecError

Bytes2Bytes = Callable[[bytes], bytes]

SORTED = ("emb", "c_q", "fc")
"""Parts of the names of tables whose rows are sorted, as in the challenge's submission."""

ARCHIVERS_AT_ONCE = 4
"""Groups archived at once: each takes 800 MB and minutes of one core."""


@dataclass(frozen=True)
class Table:
    """Integers [R, C] of -127 to 127: weight [r, c] is steps[r] * symbols[r, c]."""

    shape: tuple[int, ...]  # of the tensor; R is the first entry
    symbols: NDArray[np.int8]
    steps: NDArray[np.float16]


@dataclass(frozen=True)
class Tables:
    """A quantized model: tables, and other tensors as float16, float32 or integers, by name."""

    tables: Mapping[str, Table]
    others: Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Stage:
    """A lossless stage; `missing` returns why the stage cannot run on this machine, or ""."""

    encode: Callable[[Tables], bytes]
    decode: Callable[[bytes], Tables]
    missing: Callable[[], str] = lambda: ""


def identical(one: Tables, other: Tables) -> bool:
    """Return whether two models are equal in every bit."""
    return _listing(one) == _listing(other) and _parts(one) == _parts(other)


def stream_stage(compress: Bytes2Bytes, expand: Bytes2Bytes) -> Stage:
    """Return a stage that sends all tensors, one after the other, through one compressor of bytes."""

    def encode(tables: Tables) -> bytes:
        listing = json.dumps(_listing(tables)).encode()
        return compress(_join([listing, *_parts(tables)]))

    def decode(blob: bytes) -> Tables:
        listing, *parts = _split(expand(blob))
        return _rebuild(json.loads(listing), parts)

    return Stage(encode, decode)


def grouped_stage(command: str, compress: Sequence[str], expand: Sequence[str]) -> Stage:
    """Return a stage that archives tables by role with `command`, whose arguments name {plain} and {packed} files."""

    def encode(tables: Tables) -> bytes:
        groups: dict[str, list[bytes]] = {}
        orders = []
        for name, table in tables.tables.items():
            symbols = table.symbols
            if _is_sorted(name):
                order = similar_order(symbols)
                orders.append(order.astype("<u2" if len(order) <= 1 << 16 else "<u4").tobytes())
                symbols = symbols[order]
            groups.setdefault(_group(name), []).append(symbols.T.tobytes())
        packed = _each([b"".join(group) for group in groups.values()], [command, *compress], "plain", "packed")
        steps = [table.steps for table in tables.tables.values()]
        rest = _join([json.dumps(_listing(tables)).encode(), *map(_planes, [*steps, *tables.others.values()])])
        return _join([brotli.compress(rest, quality=11, lgwin=24), brotli.compress(_join(orders)), *packed])

    def decode(blob: bytes) -> Tables:
        rest, permutations, *packed = _split(blob)
        text, *parts = _split(brotli.decompress(rest))
        listing = json.loads(text)
        orders = iter(_split(brotli.decompress(permutations)))
        names = [name for name, _ in listing["tables"]]
        groups = dict.fromkeys(map(_group, names))
        plain = _each(packed, [command, *expand], "packed", "plain")
        streams = {group: memoryview(data) for group, data in zip(groups, plain, strict=True)}
        symbols = []
        for name, shape in listing["tables"]:
            rows, columns = shape[0], prod(shape[1:])
            stream = streams[_group(name)]
            table = np.frombuffer(stream[: rows * columns], np.int8).reshape(columns, rows).T
            streams[_group(name)] = stream[rows * columns :]
            if _is_sorted(name):
                order = np.frombuffer(next(orders), "<u2" if rows <= 1 << 16 else "<u4")
                unsorted = np.empty_like(table)
                unsorted[order] = table
                table = unsorted
            symbols.append(table.tobytes())
        steps, others = parts[: len(names)], parts[len(names) :]
        return _rebuild(listing, [part for pair in zip(symbols, steps, strict=True) for part in pair] + others)

    def missing() -> str:
        return "" if shutil.which(command) else f"{command} is not installed"

    return Stage(encode, decode, missing)


STAGES: dict[str, Stage] = {
    "zlib-9": stream_stage(lambda data: zlib.compress(data, 9), zlib.decompress),
    "zstd-22": stream_stage(
        lambda data: zstandard.ZstdCompressor(level=22).compress(data), zstandard.ZstdDecompressor().decompress
    ),
    "brotli-11": stream_stage(lambda data: brotli.compress(data, quality=11, lgwin=24), brotli.decompress),
    "lrzip -z": grouped_stage(
        "lrzip",
        ("-z", "-L", "9", "-p", "1", "-q", "-f", "-o", "{packed}", "{plain}"),
        ("-d", "-p", "1", "-q", "-f", "-o", "{plain}", "{packed}"),
    ),
    "zpaq -m5": grouped_stage(
        "zpaq",
        ("a", "{packed}", "{plain}", "-m5", "-t1"),
        ("x", "{packed}", "-to", "{folder}/", "-t1", "-f"),
    ),
}


@making
def similar_order(rows: NDArray[np.int8]) -> NDArray[np.int64]:
    """Return an order of rows [R, C], row 0 first, in which each row is followed by the nearest (L1) of the rest."""
    count, width = rows.shape
    order = np.arange(count)
    for n in range(count - 1):
        current = rows[order[n]]
        best, least = n + 1, np.int64(1 << 60)
        for k in range(n + 1, count):
            other = rows[order[k]]
            total = np.int64(0)
            for c in range(width):
                total += abs(np.int64(current[c]) - np.int64(other[c]))
            if total < least or (total == least and order[k] < order[best]):
                best, least = k, total
        order[n + 1], order[best] = order[best], order[n + 1]
    return order


def _is_sorted(name: str) -> bool:
    return any(part in name for part in SORTED)


def _group(name: str) -> str:
    """Return a table's role: its name without the block's number."""
    return re.sub(r"\d+", "#", name)


def _each(inputs: Sequence[bytes], command: Sequence[str], source: str, target: str) -> list[bytes]:
    """Send every input through an archiver, each in its own folder."""

    def one(data: bytes) -> bytes:
        if not data:
            return b""
        with tempfile.TemporaryDirectory() as folder:
            # zpaq stores the name of a file and restores the file into {folder}, relative to its working folder
            names = {"plain": "plain.bin", "packed": "packed.zpaq", "folder": "."}
            Path(folder, names[source]).write_bytes(data)
            ran = subprocess.run(
                [part.format(**names) for part in command], cwd=folder, capture_output=True, stdin=subprocess.DEVNULL
            )
            found = Path(folder, names[target])
            if ran.returncode or not found.exists():
                raise CodecError(f"{command[0]} failed with status {ran.returncode}: {ran.stderr.decode()[-300:]}")
            return found.read_bytes()

    with ThreadPoolExecutor(ARCHIVERS_AT_ONCE) as pool:
        return list(pool.map(one, inputs))


def _listing(tables: Tables) -> dict[str, Any]:
    """Describe the parts; steps and rows follow from the description."""
    return {
        "tables": [[name, list(table.shape)] for name, table in tables.tables.items()],
        "others": [[name, list(other.shape), str(other.dtype)] for name, other in tables.others.items()],
    }


def _parts(tables: Tables) -> list[bytes]:
    found = []
    for table in tables.tables.values():
        found += [table.symbols.tobytes(), _planes(table.steps)]
    return found + [_planes(other) for other in tables.others.values()]


def _rebuild(listing: dict[str, Any], parts: Sequence[bytes]) -> Tables:
    """Restore the tables of `_listing` and `_parts`."""
    tables, others = {}, {}
    for n, (name, shape) in enumerate(listing["tables"]):
        symbols = np.frombuffer(parts[2 * n], np.int8).reshape(shape[0], prod(shape[1:]))
        tables[name] = Table(tuple(shape), symbols, _unplane(parts[2 * n + 1], "float16"))
    for n, (name, shape, dtype) in enumerate(listing["others"], 2 * len(tables)):
        others[name] = _unplane(parts[n], dtype).reshape(shape)
    return Tables(tables, others)


def _planes(values: NDArray[Any]) -> bytes:
    """Return the first bytes of all values, then the second, and so on: signs and exponents compress together."""
    raw = np.frombuffer(np.ascontiguousarray(values).tobytes(), np.uint8)
    return raw.reshape(-1, values.dtype.itemsize).T.tobytes()


def _unplane(data: bytes, dtype: str) -> NDArray[Any]:
    size = np.dtype(dtype).itemsize
    return np.frombuffer(np.frombuffer(data, np.uint8).reshape(size, -1).T.tobytes(), dtype)


def _join(parts: Sequence[bytes]) -> bytes:
    return struct.pack(f"<{len(parts) + 1}I", len(parts), *map(len, parts)) + b"".join(parts)


def _split(blob: bytes) -> list[bytes]:
    (count,) = struct.unpack_from("<I", blob)
    parts, at = [], 4 * (count + 1)
    for size in struct.unpack_from(f"<{count}I", blob, 4):
        parts.append(blob[at : at + size])
        at += size
    return parts
