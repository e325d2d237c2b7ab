"""docs/formats.md is enough to write a reader of packs: this one has nothing but that page, plain and slow.

`tests.support.page_reader` reads what archives and packs say of themselves in the same way.
"""

import os
import struct
import sys
from io import BytesIO
from math import prod
from pathlib import Path

import numpy as np
import pytest
import torch
import zstandard

import codec
from codec.archive.format import embedded_pack, read_contents, read_record
from codec.model.config import ModelConfig
from codec.model.parameters import parameters
from codec.pack.change import with_tunings
from codec.quantization.quantized import Tuning
from codec.quantization.quantizers import RowAbsmax
from codec.quantization.sensitivity import SensitivityGrid
from tests.golden.make import FOLDER
from tests.support import page_reader
from tests.support.page_reader import read_archive, read_pack

CODES = {4: (0o5, 0o2), 8: (0o13, 0o04), 16: (0o23, 0o04), 64: (0o103, 0o024), 256: (0o515, 0o362)}
QUARTERS = np.array([1, 1.1892071, 1.4142135, 1.6817929], np.float32)
RISING, FALLING = (65536, 77936, 92682, 110218), (65536, 55109, 46341, 38968)
FLOAT8 = ("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu")
WIDTHS = {
    **dict.fromkeys(FLOAT8, 1),
    **{"bool": 1, "int8": 1, "uint8": 1, "int16": 2, "uint16": 2, "float16": 2, "bfloat16": 2, "int32": 4, "uint32": 4},
    **{"float32": 4, "complex32": 4, "int64": 8, "uint64": 8, "float64": 8, "complex64": 8, "complex128": 16},
}
EXACT, BY_ROW, BY_GRID, BY_TUNED_GRID = range(4)
STORED, ZSTD, TABLE, WHOLE = range(4)


class RangeDecoder:
    """A stream, symbol by symbol."""

    def __init__(self, stream):
        self.stream, self.read, self.code, self.range = stream, 7, int.from_bytes(stream[:7].ljust(7, b"\0")), 1 << 56

    def target(self, total):
        self.unit = self.range // total
        return min(self.code // self.unit, total - 1)

    def remove(self, start, frequency):
        self.code -= self.unit * start
        self.range = self.unit * frequency
        while self.range < 1 << 48:
            byte = self.stream[self.read] if self.read < len(self.stream) else 0
            self.code, self.range, self.read = self.code * 256 + byte, self.range * 256, self.read + 1

    def ended(self):
        left = len(self.stream) + 7 - self.read
        return left == 0 or (left == 1 and self.code < 1 << 48)


class Bits:
    """Adaptive bits by slot."""

    def __init__(self, decoder):
        self.decoder, self.states = decoder, {}

    def take(self, *slot):
        p, n = self.states.get(slot, (1 << 21, 0))
        ones = min(max(p >> 6, 1), 65535)
        zeros = (1 << 16) - ones
        bit = int(self.decoder.target(1 << 16) >= zeros)
        self.decoder.remove(*((zeros, ones) if bit else (0, zeros)))
        goal = (1 << 22) - 1 if bit else 0
        self.states[slot] = p + (((goal - p) * ((1 << 17) // (2 * n + 3))) >> 16), min(n + 1, 1023)
        return bit

    def beyond(self, end):
        length = 0
        while length < 24 and self.take("unary", end, length):
            length += 1
        n = int(length > 0)
        for position in range(length - 2, -1, -1):
            n = 2 * n + self.take("below", length, position)
        return n


class Table:
    """An adaptive table."""

    def __init__(self, decoder, counts):
        self.decoder, self.counts, self.total = decoder, counts, sum(counts)

    def take(self):
        target, start, symbol = self.decoder.target(self.total), 0, 0
        while start + self.counts[symbol] <= target:
            start += self.counts[symbol]
            symbol += 1
        self.decoder.remove(start, self.counts[symbol])
        self.counts[symbol] += 32
        self.total += 32
        if self.total > 1 << 20:
            self.counts = [(c + 1) >> 1 for c in self.counts]
            self.total = sum(self.counts)
        return symbol


def power(e, most=20):
    return RISING[e & 3] << min(e >> 2, most)


def first_counts(bin_, parity, scale, low):
    expected = ((4 * RISING[bin_ & 3]) << (bin_ >> 2)) >> 16
    weights = []
    for i in range(32):
        distance = abs(scale * ((2 * (i - 16) + 1) * (1 << low) - 1) + 2 * parity)
        a = distance * 185 // (expected + 19)
        weights.append(FALLING[a & 3] >> min(a >> 2, 30))
    return [1 + 512 * weight // sum(weights) for weight in weights]


def octaves(steps):
    levels = [int(step.view(np.uint32)) >> 21 for step in steps]
    least = min(level for level, step in zip(levels, steps, strict=True) if step > 0)
    return [(level if step > 0 else least) - least for level, step in zip(levels, steps, strict=True)]


def integers(decoder, row_levels, column_levels, states, on_rows, on_columns, typical):
    """The integers of a matrix."""
    height, width, scale = len(row_levels), len(column_levels), 2 if states else 1
    found, bits, state = np.zeros((height, width), np.int64), Bits(decoder), 0
    low = [max(0, (b >> 2) - 4 - scale) for b in range(64)]
    tables = [Table(decoder, first_counts(b, z, scale, low[b])) for b in range(64) for z in range(2)]
    means = [min(power(typical, 24), 1 << 38)] * height
    for j in range(width):
        rate = max(65536 // (j + 3), 64)
        for r in range(height):
            mean = means[r]
            if r == 0:
                seen = expected = 8 * mean
            if r % 16 == 0:
                ratio = min(max(seen // ((expected >> 12) + 1), 1 << 6), 1 << 20)
                inverse = (1 << 24) // ratio
            e = row_levels[r] + column_levels[j]
            x = ((mean * ratio) >> 12) + 1
            top = x.bit_length() - 1
            b = min(max(4 * (top - 12) + (((x << 2) >> top) & 3) - e, 0), 63)
            on = states and on_rows[r] and on_columns[j]
            z = state & 1 if on else 0
            i = tables[2 * b + z].take()
            cell = i - 16
            if i == 0:
                cell -= bits.beyond("first")
            elif i == 31:
                cell += bits.beyond("last")
            if low[b]:
                rest = decoder.target(1 << low[b])
                decoder.remove(rest, 1)
                cell = (cell << low[b]) + rest
            q = found[r, j] = min(max(scale * cell + z, -(1 << 24)), 1 << 24)
            if on:
                h0, h1 = CODES[states]
                state = (state >> 1) ^ ((state & 1) * (h0 >> 1)) ^ (((q >> 1) & 1) * (h1 >> 1))
            size = min(abs(q) * power(e), 1 << 38)
            seen, expected = min(seen + size, 1 << 50), min(expected + mean, 1 << 50)
            means[r] += ((min((size * inverse) >> 12, 1 << 38) - mean) * rate) >> 16
    return found


def row_words(decoder, count):
    tables = [Table(decoder, [16] * 32) for _ in range(3)]
    for _ in range(count):
        first, second, third = (table.take() for table in tables)
        yield first << 10 | second << 5 | third


def grid_words(decoder, count):
    first, second = Table(decoder, [1] * 32), [Table(decoder, [1] * 32) for _ in range(32)]
    for _ in range(count):
        digit = first.take()
        yield digit << 5 | second[digit].take()


def factors(words, least):
    e = np.array(words, np.int64) % 512 + least
    return np.ldexp(QUARTERS[e & 3], e >> 2), [word < 512 for word in words]


def tunings(words):
    found = np.array(list(words), np.float32) - 512
    assert np.abs(found).max() <= 127
    return 1 + found / np.float32(256)


def quantized(tag, content, height, width):
    """The weights of a quantized part, float32."""
    columns, column_levels, on = np.ones(width, np.float32), [0] * width, ([True] * height, [True] * width)
    if tag == BY_ROW:
        exponent, states, typical = struct.unpack_from("<hHB", content)
        decoder = RangeDecoder(content[5:])
        halves = np.array(list(row_words(decoder, height)), np.uint16).view(np.float16)
        rows = np.ldexp(halves.astype(np.float32), exponent)
    else:
        unit, row_least, column_least, states, typical = struct.unpack_from("<fhhHB", content)
        decoder = RangeDecoder(content[11:])
        row_factors, on_rows = factors(list(grid_words(decoder, height)), row_least)
        columns, on_columns = factors(list(grid_words(decoder, width)), column_least)
        rows, on = np.float32(unit) * row_factors, (on_rows, on_columns)
        if tag == BY_TUNED_GRID:
            rows *= tunings(grid_words(decoder, height))
            columns *= tunings(grid_words(decoder, width))
        column_levels = octaves(columns)
    q = integers(decoder, octaves(rows), column_levels, states, *on, typical)
    assert decoder.ended()
    weights = q.astype(np.float32) * rows[:, None] * columns
    assert np.isfinite(weights).all()
    return weights, states, on


def planes(content, size, width, floating, methods):
    """The bytes of an exact part."""
    found, at = b"", 0
    for begin in range(0, size, 1 << 22):
        block = min(1 << 22, size - begin)
        apart = []
        while len(apart) < width:
            method, length = struct.unpack_from("<BI", content, at)
            data, at = content[at + 5 : at + 5 + length], at + 5 + length
            methods.add(method)
            if method in (ZSTD, WHOLE):
                data = zstandard.ZstdDecompressor().decompress(data, max_output_size=block)
            elif method == TABLE:
                decoder = RangeDecoder(data)
                table = Table(decoder, [1] * 256)
                data = bytes(table.take() for _ in range(block // width))
                assert decoder.ended()
            if method == WHOLE:
                break
            apart.append(np.frombuffer(data, np.uint8))
        if method != WHOLE:
            numbers = np.stack(apart[::-1], 1).reshape(-1).view(f"<u{width}")
            if floating:
                numbers = (numbers >> 1) | (numbers << (8 * width - 1))
            data = numbers.tobytes()
        assert len(data) == block
        found += data
    assert at == len(content)
    return found


def to_float32(data, dtype):
    if dtype == "bfloat16":
        return (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)
    return np.frombuffer(data, np.dtype(dtype).newbyteorder("<"))


def converted(values, dtype):
    """The bytes of float32 numbers in another dtype."""
    if dtype == "bfloat16":
        most = np.uint32(0x7F7F0000).view(np.float32)
        bits = np.clip(values.astype(np.float32), -most, most).view(np.uint32)
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2").tobytes()
    if dtype in FLOAT8:  # whose rounding the page says, and torch has
        kind = getattr(torch, dtype)
        least = 2.0**-127 if dtype == "float8_e8m0fnu" else -torch.finfo(kind).max
        return torch.from_numpy(values.clip(least, torch.finfo(kind).max)).to(kind).view(torch.uint8).numpy().tobytes()
    kind = np.dtype(dtype)
    return np.clip(values, np.finfo(kind).min, np.finfo(kind).max).astype(kind).tobytes()


def slabs(shape, whole):
    """Rows and columns of each slab."""
    height, width = (shape[0], prod(shape[1:])) if len(shape) > 1 else (1, prod(shape))
    most = 1 << 22
    if whole:
        return [(height, width)]
    if width > most:
        return [(1, min(most, width - at)) for _ in range(height) for at in range(0, width, most)]
    rows = most // max(1, width)
    return [(min(rows, height - at), width) for at in range(0, height, rows)]


class Reader:
    """The tensors of a pack, each as dtype, shape and bytes, from the page alone; and what it met on its way."""

    def __init__(self, blob):
        self.found, self.tags, self.methods, self.states, self.off = {}, set(), set(), set(), False
        pack = read_pack(blob)
        self.header = pack["header"]
        for entry, parts in pack["tensors"]:
            pieces = zip(parts, slabs(entry["shape"], self.header.get("whole")), strict=True)
            self.add(entry, b"".join(self.slab(entry["dtype"], *part, *piece) for part, piece in pieces))
        for entries, part in pack["batches"]:
            self.batch(entries, *part)
        for name, other in self.header.get("twins", {}).items():
            self.found[name] = self.found[other]

    def exact(self, content, dtype, elements):
        width = WIDTHS[dtype] // 2 if "complex" in dtype else WIDTHS[dtype]
        return planes(content, elements * WIDTHS[dtype], width, "float" in dtype, self.methods)

    def slab(self, dtype, tag, content, height, width):
        self.tags.add(tag)
        if tag == EXACT:
            return self.exact(content, dtype, height * width)
        weights, states, on = quantized(tag, content, height, width)
        self.states.add(states)
        self.off |= not all(map(all, on))
        return converted(weights, dtype)

    def batch(self, entries, tag, content):
        self.tags.add(tag)
        kept = {entry.get("kept", entry["dtype"]) for entry in entries}.pop()
        assert tag == EXACT
        data = self.exact(content, kept, sum(prod(entry["shape"]) for entry in entries))
        for entry in entries:
            size = prod(entry["shape"]) * WIDTHS[kept]
            mine, data = data[:size], data[size:]
            self.add(entry, converted(to_float32(mine, kept), entry["dtype"]) if "kept" in entry else mine)
        assert not data

    def add(self, entry, data):
        self.found[entry["name"]] = entry["dtype"], tuple(entry["shape"]), data


def plain(state):
    """A state dict as the reader has it."""
    flat = {name: t.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() for name, t in state.items()}
    return {name: (str(t.dtype)[6:], tuple(t.shape), flat[name]) for name, t in state.items()}


def checked(blob):
    """Return what the reader met in a pack that it reads as the project does."""
    reader = Reader(blob)
    assert reader.found == plain(codec.decompress(blob))
    return reader


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("budget", [None, 7000, 4000])
def test_the_page_is_enough_to_read_a_pack(budget):
    source = {"a": noise(96, 64) * torch.logspace(-2, 0, 64), "b": noise(5, 20, 60), "c": noise(70)}
    reader = checked(codec.compress({**source, "n": torch.tensor([[7]])}, budget=budget))
    assert reader.tags == {EXACT, BY_GRID} and reader.states == ({0} if budget is None else {256})
    assert reader.found.keys() == {*source, "n"}


def test_a_model():
    config = ModelConfig(vocab_size=40, window=8, num_layers=1, model_dim=4, num_heads=1, num_kv_heads=1)
    state = {name: noise(*parameter.shape) for name, parameter in parameters(config).items()}
    reader = checked(codec.compress(state, config))
    assert reader.header["whole"] and {entry["kept"] for entry in reader.header["vectors"]} == {"float16"}


def test_steps_by_row():
    source = {"w": noise(40, 50) * torch.logspace(-3, 0, 40)[:, None], "half": noise(30, 40).half()}
    assert checked(codec.compress(source, quantizer=RowAbsmax(8))).tags == {BY_ROW}


@pytest.mark.parametrize("states", [4, 8, 16, 64])
def test_a_small_trellis_with_rows_and_columns_off_it(states):
    scales = torch.where(torch.arange(60) % 7 == 0, 1e-3, 1.0)
    weights = noise(40, 60) * scales * scales[:40, None]
    source = {"w": weights, "b": weights.bfloat16()[:32]}
    reader = checked(codec.compress(source, quantizer=SensitivityGrid(0.25, states=states)))
    assert reader.states == {states} and reader.off


def test_tuned_steps():
    source, random = {"a": noise(40, 60), "b": noise(50, 40)}, np.random.default_rng(0)
    blob = codec.compress(source, quantizer=SensitivityGrid(0.25))
    tunings = {"a": Tuning(*(random.integers(-127, 128, n, dtype=np.int32) for n in (40, 60)))}
    assert checked(with_tunings(blob, tunings)).tags == {BY_GRID, BY_TUNED_GRID}


@pytest.mark.parametrize("states", [0, 8])
def test_integers_beyond_the_tables(states):
    weights = noise(40, 60)
    weights[3, 5], weights[20, 30], weights[7] = 1e4, -3e4, weights[7] * 1e3
    checked(codec.compress({"w": weights}, quantizer=SensitivityGrid(0.01, states=states)))


def test_what_comes_back_exactly():
    large = noise(170, 120)
    source = {"f32": large, "tied": large, "f64": noise(7).double(), "bf16": noise(300, 130).bfloat16()}
    source |= {"bool": noise(3, 5) > 0, "large_bool": noise(70_000) > 0, "complex": torch.complex(noise(6), noise(6))}
    source |= {"i64": (noise(9000) * 90).long(), "repeated": torch.arange(100).repeat(200).int()}
    source |= {"scalar": torch.tensor(2.5), "empty": torch.zeros(0, 4)}
    reader = checked(codec.compress(source, lossless=["*"]))
    assert reader.found == plain(source) and reader.header["twins"] == {"tied": "f32"}
    assert reader.tags == {EXACT} and reader.methods == {STORED, ZSTD, TABLE, WHOLE}


def test_exact_and_quantized_together():
    source = {"kept": noise(200, 100), "ids": torch.arange(9), "tied": noise(40, 50), "w": noise(40, 50)}
    lossless = ["kept", "ids"]
    reader = checked(codec.compress(source, lossless=lossless, quantizer=SensitivityGrid(0.25)))
    assert reader.tags == {EXACT, BY_GRID} and reader.header["twins"] == {"w": "tied"}
    assert all(reader.found[name] == plain(source)[name] for name in lossless)


def test_vectors_that_are_kept_in_another_dtype():
    source = {"a": noise(70), "b": noise(9).bfloat16(), "c": noise(5) * 1e5, "d": noise(8).double()}
    reader = checked(codec.compress({**source, "e": noise(4).half()}, vectors="float16"))
    assert {entry.get("kept") for entry in reader.header["vectors"]} == {None, "float16"}


def test_several_slabs():
    rows = (torch.arange(3 * (2**21 + 5)) % 7).to(torch.int8).reshape(3, -1)
    pieces = (torch.arange(2 * (2**22 + 3)) % 5).to(torch.uint8).reshape(2, -1)
    reader = checked(codec.compress({"rows": rows, "pieces": pieces}))
    assert [len(entry["parts"]) for entry in reader.header["tensors"]] == [4, 3]


@pytest.mark.parametrize("name", sorted(path.name for path in FOLDER.glob("*.pack")))
def test_the_page_is_enough_to_list_every_golden_pack(name):
    blob = (FOLDER / name).read_bytes()
    said, pack = read_pack(blob), codec.open(blob)
    assert said["header"] == pack.manifest and said["files"] == pack.files
    assert said["sections"].keys() == pack.sections.keys()
    assert len(said["sections"]["tensors"]) == pack.sections["tensors"].length
    assert said["sections"]["config"].decode() == (pack.config.to_json() if pack.config else "")
    assert said["sections"]["tokenizer"] == (pack.tokenizer.model if pack.tokenizer else b"")
    entries = [entry for entry, _ in said["tensors"]] + [entry for batch, _ in said["batches"] for entry in batch]
    assert [entry["name"] for entry in entries] + list(pack.twins) == pack.names
    if name != "slabs.pack":  # which has four million quantized elements
        assert Reader(blob).found == plain(pack.state_dict())


@pytest.mark.parametrize("name", sorted(path.name for path in FOLDER.glob("*.upz")))
def test_the_page_is_enough_to_list_every_golden_archive(name):
    data = (FOLDER / name).read_bytes()
    said, contents = read_archive(data), read_contents(stream := BytesIO(data))
    for header, found in ((said["opening"], contents.opening), (said["header"], contents.header)):
        assert (header["pack"], header["window"]) == (found.pack and found.pack.hex(), found.window)
        assert (found.adaptation == "recall") == bool(header["flags"] & 32)
    chunks = [read_record(stream, contents, n) for n in range(len(contents.sizes))]
    found = zip(contents.offsets, contents.lengths, contents.sizes, chunks, strict=True)
    assert [(r["offset"], r["bytes"], r["size"], r["tag"], r["crc"], r["payload"]) for r in said["records"]] == [
        (offset, length, size, chunk.tag.name.lower(), chunk.crc, chunk.payload)
        for offset, length, size, chunk in found
    ]
    assert (said["gaps"], said["packs"][:1]) == (contents.gaps, [p for p in [embedded_pack(stream, contents)] if p])
    members = [
        (os.fsdecode(m["name"]), m["kind"], m["size"], m["mode"], m["time"], m.get("documents", 0),
         os.fsdecode(m.get("target", b"")), bool(m["flags"] & 64), bool(m["flags"] & 128))
        for m in said["members"]
    ]  # fmt: skip
    assert members == [
        (m.name, m.kind.name.lower(), m.size, m.mode, m.mtime, m.documents, m.target, m.back > 0, m.more)
        for m in contents.members
    ]


def test_the_reader_of_the_page_stands_alone_and_is_short():
    """It imports the standard library and zstandard, and has at most 150 lines."""
    lines = Path(page_reader.__file__).read_text().splitlines()
    imported = {line.split()[1] for line in lines if line.startswith(("import ", "from "))}
    assert len(lines) <= 150 and imported - {"zstandard"} <= sys.stdlib_module_names


@pytest.mark.parametrize("name", ["plain.pack", "folder.pack", "large.upz", "empty_file.upz"])
def test_the_reader_of_the_page_refuses_what_is_damaged(name):
    """Every byte of an archive all of whose records can be checked without a model; some bytes of packs."""
    data = (FOLDER / name).read_bytes()
    read, step = (read_pack, 101) if name.endswith(".pack") else (read_archive, 1)
    for at in range(0, len(data), step):
        with pytest.raises(Exception):  # noqa: B017 (of any kind)
            read(data[:at] + bytes([data[at] ^ 8]) + data[at + 1 :])
