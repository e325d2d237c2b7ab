"""docs/formats.md is enough to write a reader of packs: this one has nothing but that page, plain and slow."""

import hashlib
import json
import struct
import zlib
from math import prod

import numpy as np
import pytest
import torch
import zstandard

import codec

CODES = {4: (0o5, 0o2), 8: (0o13, 0o04), 16: (0o23, 0o04), 64: (0o103, 0o024), 256: (0o515, 0o362)}
QUARTERS = np.array([1, 1.1892071, 1.4142135, 1.6817929], np.float32)


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
    """The adaptive bits of a role, by context."""

    def __init__(self, decoder):
        self.decoder, self.states = decoder, {}

    def take(self, *context):
        p, n = self.states.get(context, (1 << 21, 0))
        ones = min(max(p >> 6, 1), 65535)
        bit = int(self.decoder.target(1 << 16) < ones)
        self.decoder.remove(*((0, ones) if bit else (ones, (1 << 16) - ones)))
        goal = (1 << 22) - 1 if bit else 0
        self.states[context] = p + (((goal - p) * ((1 << 17) // (2 * n + 3))) >> 16), min(n + 1, 1023)
        return bit

    def integer(self, context):
        negative, length = self.take("sign", context), 0
        while length < 24 and self.take("length", context, negative, length):
            length += 1
        size, so_far = int(length > 0), ""
        for position in range(length - 2, -1, -1):
            if len(so_far) < 3:
                bit = self.take("tree", context, negative, length, so_far)
                so_far += str(bit)
            else:
                bit = self.take("tail", length, position)
            size = 2 * size + bit
        return -size - 1 if negative else size


def table_symbols(decoder, count):
    """Bytes under an adaptive table."""
    counts = [1] * 256
    for _ in range(count):
        target, start, symbol = decoder.target(sum(counts)), 0, 0
        while start + counts[symbol] <= target:
            start += counts[symbol]
            symbol += 1
        decoder.remove(start, counts[symbol])
        yield symbol
        counts[symbol] += 32
        if sum(counts) > 1 << 20:
            counts = [(c + 1) >> 1 for c in counts]


def power(e):
    return (65536, 77936, 92682, 110218)[e & 3] << min(e >> 2, 20)


def octaves(steps):
    levels = [int(step.view(np.uint32)) >> 21 for step in steps]
    least = min(level for level, step in zip(levels, steps, strict=True) if step > 0)
    return [(level if step > 0 else least) - least for level, step in zip(levels, steps, strict=True)]


def matrix(bits, entry, rows, columns, on_rows, on_columns):
    """The integers of a matrix."""
    row_levels, column_levels = octaves(rows), octaves(columns)
    height, width, most = len(rows), len(columns), 1 << 61
    found = np.zeros((height, width), np.int64)
    sums, state = [2 * min(power(entry["typical"]), 1 << 38)] * height, 0
    for j in range(width):
        ratio = 1 << 12
        for r in range(height):
            mean = sums[r] // (j + 2)
            if r == 0:
                seen = expected = 8 * mean
            if r % 16 == 0:
                ratio = min(max(seen // ((expected >> 12) + 1), 1 << 6), 1 << 20)
            step = power(row_levels[r] + column_levels[j])
            y = ((((mean * ratio) >> 12) << 6) // step) + 1
            top = y.bit_length() - 1
            bin_ = min(max(4 * (top - 2) + ((y >> (top - 2)) & 3 if top >= 2 else 0), 0), 63)
            on = entry["states"] and on_rows[r] and on_columns[j]
            parity = state & 1 if on else 0
            k = bits.integer(2 * bin_ + parity)
            q = found[r, j] = 2 * k + parity if entry["states"] else k
            if on:
                h0, h1 = CODES[entry["states"]]
                state = (state >> 1) ^ ((state & 1) * (h0 >> 1)) ^ (int(q >> 1) & 1) * (h1 >> 1)
            size = min(abs(int(q)) * step, 1 << 38)
            seen, expected = min(seen + size, most), min(expected + mean, most)
            sums[r] = min(sums[r] + min((size << 12) // ratio, 1 << 38), most)
    return found


def read_pack(blob):
    """The state dict of a pack, from the page alone."""
    assert blob[:4] == b"UPAK" and hashlib.sha256(blob[:-32]).digest() == blob[-32:]
    version, count = struct.unpack_from("<HH", blob, 4)
    assert version == 2
    sections, at = {}, 8 + 20 * count
    for n in range(count):
        name, length, crc = struct.unpack_from("<12sII", blob, 8 + 20 * n)
        sections[name.rstrip(b"\0").decode()] = blob[at : at + length]
        assert zlib.crc32(blob[at : at + length]) == crc
        at += length
    header = json.loads(zstandard.decompress(sections["header"]))
    state, scales, shapes = {}, RangeDecoder(sections["scales"]), []
    for entry in header["tensors"]:
        height, width = entry["shape"][0], prod(entry["shape"][1:])
        shapes.append((height, width, height + width if "unit" in entry else height))
    total = sum(size for _, _, size in shapes)
    high, low = (list(table_symbols(scales, total)) for _ in range(2))
    words = np.array(high, np.uint16) * 256 + np.array(low, np.uint16)
    assert scales.ended()
    decoder, roles = RangeDecoder(sections["tensors"]), {}
    for entry, (height, width, size) in zip(header["tensors"], shapes, strict=True):
        mine, words = words[:size], words[size:]
        on = mine < 512
        if "unit" in entry:
            e = (mine % 512).astype(np.int64) + np.repeat(entry["least"], (height, width))
            steps = np.ldexp(QUARTERS[e & 3], e >> 2)
            rows, columns = np.float32(entry["unit"]) * steps[:height], steps[height:]
        else:
            rows = np.ldexp(mine.view(np.float16).astype(np.float32), entry["exponent"])
            columns, on = np.ones(width, np.float32), np.ones(height + width, bool)
        bits = roles.setdefault(entry["role"], Bits(decoder))
        q = matrix(bits, entry, rows, columns, on[:height], on[height:])
        state[entry["name"]] = (q.astype(np.float32) * rows[:, None] * columns).reshape(entry["shape"])
    assert decoder.ended()
    vectors, at = zstandard.decompress(sections["vectors"]), 0
    for entry in header["vectors"]:
        values = np.frombuffer(vectors, np.dtype(entry["dtype"]).newbyteorder("<"), prod(entry["shape"]), at)
        state[entry["name"]], at = values.reshape(entry["shape"]), at + values.nbytes
    assert at == len(vectors)
    return state


@pytest.mark.parametrize("budget", [None, 7000, 4000])
def test_the_page_is_enough_to_read_a_pack(budget):
    noise = torch.Generator().manual_seed(0)
    source = {
        "a": torch.randn(96, 64, generator=noise) * torch.logspace(-2, 0, 64),
        "b": torch.randn(5, 20, 60, generator=noise),
        "c": torch.randn(70, generator=noise),
        "n": torch.tensor([[7]]),
    }
    blob = codec.compress(source, budget=budget)
    assert budget is None or all(entry["states"] for entry in codec.open(blob).manifest["tensors"])
    expected, found = codec.decompress(blob), read_pack(blob)
    assert found.keys() == expected.keys() == source.keys()
    for name, values in expected.items():
        assert np.array_equal(found[name].astype(values.numpy().dtype), values.numpy()), name
