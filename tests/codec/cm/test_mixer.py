"""Compiled arithmetic against plain Python."""

import hashlib

import numpy as np

from codec.cm import mixer, slots, state, tables
from codec.cm.state import DECISIONS, FINAL_ROW, INPUT_COUNT, KNOTS, LAST, SELECTORS, SETS

LIMIT = tables.LIMIT


def squash(x):
    return int(tables.SQUASH[x + LIMIT])


def clamp(x):
    return max(-LIMIT, min(LIMIT, x))


class Plain:
    """The mixer with Python's integers; maps are dicts of [probability, count]."""

    def __init__(self, s):
        self.weights, self.final = s.weights.reshape(-1, state.INPUTS).tolist(), s.final.tolist()
        self.refined = [[value >> 10, value & 1023] for value in s.refined.tolist()]
        self.decisions = 0

    def mix(self, x, sets, row, last, expected):
        self.sums = [clamp((sum(a * b for a, b in zip(x, self.weights[n], strict=False)) + 32768) >> 16) for n in sets]
        total = clamp((sum(a * b for a, b in zip(self.sums, self.final[row], strict=True)) + 32768) >> 16)
        self.sums.append(total)
        low, rest = divmod(max(0, min(4095, total + 2048)), 128)
        contexts = (last % 256) * 256 + row, int(slots.mixed(last % 65536 + 65536 * expected, row)) >> 20
        self.used, p = [], 2 * squash(total)
        for i, context in enumerate(contexts):
            at = (2 * (context % (len(self.refined) // KNOTS // 2)) + i) * KNOTS + low
            self.used.append(at + (rest >= 64))
            p += ((self.refined[at][0] * (128 - rest) + self.refined[at + 1][0] * rest) >> 7) >> 6
        return max(1, min(65535, (p + 2) >> 2))

    def correct(self, x, sets, row, bit):
        rate, self.decisions = 28 + 10 * 800 // (800 + self.decisions), self.decisions + 1
        for m, n in enumerate(sets):
            error = 65536 * bit - squash(self.sums[-1])
            self.final[row][m] += (self.sums[m] * error + (1 << 17)) >> 18
            own = ((65536 * bit - squash(self.sums[m])) * rate + 32) >> 6
            for j, value in enumerate(x):
                self.weights[n][j] += (value * own + (1 << 13)) >> 14
        for at in self.used:
            learn(self.refined[at], bit, 255)


def learn(pair, bit, most):
    p, n = pair
    pair[:] = p + ((((1 << 22) - 1) * bit - p) * ((1 << 17) // (2 * n + 3)) >> 16), min(n + 1, most)


def test_the_mixer_computes_as_plain_python():
    s, random = state.new_stream(100), np.random.default_rng(3)
    plain, count = Plain(s), 31
    for step in range(400):
        x = random.integers(-2047, 2048, count)
        sets = random.integers(0, 3, SELECTORS) + np.arange(SELECTORS) * SETS
        row, last, expected = (int(n) for n in random.integers(0, 256, 3))
        bit = int(x[0] > 0) if step % 5 else int(random.integers(2))
        s.inputs[:count], s.sets[:] = x, sets
        s.registers[INPUT_COUNT], s.registers[FINAL_ROW] = count, row % 4
        s.registers[LAST], s.registers[state.EXPECTED] = last, expected
        assert mixer.mix(s) == plain.mix(x.tolist(), sets.tolist(), row % 4, last, expected)
        mixer.correct(s, bit)
        plain.correct(x.tolist(), sets.tolist(), row % 4, bit)
    assert s.weights.reshape(-1, state.INPUTS).tolist() == plain.weights
    assert s.final.tolist() == plain.final
    assert [value >> 10 for value in s.refined.tolist()] == [p for p, _ in plain.refined]
    assert s.registers[DECISIONS] == 400


def test_a_node_has_its_last_seven_decisions_and_a_probability():
    random, node, seen, p = np.random.default_rng(4), 0, "", 32768
    for bit in random.integers(0, 2, 300).tolist():
        p += ((65535 * bit - p) * ((1 << 17) // (2 * min(len(seen), 250) + 3))) >> 16
        seen += str(bit)
        node = slots.learned(node, bit)
        assert node & 255 == int("1" + seen[-7:], 2)
        assert node >> 8 & 255 == min(len(seen), 250)
        assert node >> 16 == p
        assert 0 <= slots.history_index(node) < slots.HISTORIES


def test_a_bucket_is_found_again_and_the_least_used_gives_way():
    nodes = np.zeros(slots.WIDTH << 4, np.uint32)
    hashes = [int(slots.mixed(n, 5)) for n in range(200)]
    for n in hashes[:3]:
        at = slots.find(nodes, n)
        nodes[at + 1] = 77 << 8
        assert slots.find(nodes, n) == at
    for n in hashes:
        at = slots.find(nodes, n)
        assert at % slots.WIDTH == 0 and 0 <= at < len(nodes)
        assert nodes[at] == (n & 0xFFFFF) + 1
    assert sum(nodes[slots.find(nodes, n) + 1] == 77 << 8 for n in hashes[:3]) >= 2


def test_tables_are_what_they_were():
    """Every machine must have these; a change of any is a change of the format."""
    joined = b"".join(
        part.astype("<i4").tobytes()
        for part in (tables.SQUASH, tables.STRETCH, tables.STRETCH_FINE, tables.RECIPROCALS)
    )
    assert hashlib.sha256(joined).hexdigest()[:16] == "cbf405c5b417bb02"
    first = b"".join(np.ascontiguousarray(part).tobytes() for part in state.new_stream(1000, modelled=True))
    assert hashlib.sha256(first).hexdigest()[:16] == "92add2071ecbc78f"
