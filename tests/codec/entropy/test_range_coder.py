"""codec.entropy.range_coder: the same bytes as unbounded integers give, carries through long runs, no bit wasted."""

from fractions import Fraction
from math import log2

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

from codec.entropy import range_coder

Symbol = tuple[int, int, int]  # start, frequency, total
TOTAL = 1 << 24


@st.composite
def symbols(draw: st.DrawFn) -> Symbol:
    """An interval of a total of up to 2^24, often a narrow one or one that touches an end."""
    total = draw(st.one_of(st.integers(1, TOTAL), st.sampled_from([1, 2, 3, 1 << 20, TOTAL - 1, TOTAL])))
    frequency = draw(st.one_of(st.integers(1, total), st.sampled_from([1, total])))
    start = draw(st.one_of(st.integers(0, total - frequency), st.sampled_from([0, total - frequency])))
    return start, frequency, total


class Textbook:
    """Range coding with one integer that never loses its upper digits: no carries, no window."""

    def __init__(self):
        self.low, self.range, self.written = 0, 1 << 56, 0

    def put(self, start: int, frequency: int, total: int) -> None:
        unit = self.range // total
        self.low, self.range = self.low + unit * start, unit * frequency
        while self.range < 1 << 48:
            self.low, self.range, self.written = self.low << 8, self.range << 8, self.written + 1

    def finish(self) -> bytes:
        """The number of the fewest digits in [low, low + range), of those already certain at least."""
        digits = self.written + 7
        for size in range(self.written, digits + 1):
            grid = 256 ** (digits - size)
            value = -(-self.low // grid)
            if value * grid < self.low + self.range:
                return value.to_bytes(size, "big")
        raise AssertionError("the interval is empty")


def encode(sequence: list[Symbol]) -> bytes:
    state = range_coder.new_encoder()
    out = np.zeros(range_coder.MAX_SYMBOL_BYTES * len(sequence) + 8, np.uint8)
    for start, frequency, total in sequence:
        range_coder.put(state, out, start, frequency, state[1] // np.uint64(total))
        assert 1 << 48 <= state[1] <= 1 << 56
        assert state[0] < 1 << 56
    return out[: range_coder.finish(state, out)].tobytes()


def decodes(data: bytes, sequence: list[Symbol]) -> bool:
    """Whether every symbol is found again, and the stream ends as it should."""
    state, stream = range_coder.new_encoder(), np.frombuffer(data, np.uint8)
    range_coder.start_decoder(state, stream)
    for start, frequency, total in sequence:
        unit = state[1] // np.uint64(total)
        if not start <= range_coder.target(state, unit, total) < start + frequency:
            return False
        range_coder.take(state, stream, start, frequency, unit)
        assert int(state[2]) <= len(data) + range_coder.CODE_BYTES + 3
    return range_coder.ended(state, len(data))


def textbook(sequence: list[Symbol]) -> bytes:
    reference = Textbook()
    for symbol in sequence:
        reference.put(*symbol)
    return reference.finish()


@given(st.lists(symbols(), max_size=60))
@example([])
@example([(0, 1, TOTAL)] * 50)
@example([(TOTAL - 1, 1, TOTAL)] * 50)
@example([(0, 1, 1)] * 50)
@example([(1, 1, 3)] * 50)
def test_bytes_are_those_of_unbounded_integers(sequence):
    data = encode(sequence)
    assert data == textbook(sequence)
    assert decodes(data, sequence)


@given(st.lists(symbols(), max_size=60))
def test_length_is_the_ideal_to_a_byte(sequence):
    share = Fraction(1)
    for _, frequency, total in sequence:
        share *= Fraction(frequency, total)
    ideal = log2(share.denominator) - log2(share.numerator)
    lost = len(sequence) * 2.0**-24 * 1.5  # rounding range / total down, in bits
    assert ideal - 8 <= 8 * len(encode(sequence)) <= ideal + 8 + lost


@given(st.lists(symbols(), max_size=60))
def test_no_shorter_stream_decodes(sequence):
    data = encode(sequence)
    shorter = {data[:-1], (int.from_bytes(data[:-1], "big") + 1).to_bytes(len(data) + 1, "big")[2:]}
    for other in shorter if data else ():
        assert not decodes(other, sequence)


@given(st.lists(symbols(), max_size=30))
@example([(0, 1, 1)] * 4 + [(0, 1, 17), (16777214, 1, 16777215), (1048575, 1, 1048576)])
def test_no_other_stream_of_the_same_length_decodes(sequence):
    """So a damaged byte is seen, even where the symbols stay the same.

    In the example the last slots take what a rounded range leaves over, and code that lies beyond them was shifted out
    of its 64 bits.
    """
    data = encode(sequence)
    for position in range(max(0, len(data) - 3), len(data)):
        for flip in (1, 2, 64, 128, 255):
            other = data[:position] + bytes([data[position] ^ flip]) + data[position + 1 :]
            assert not decodes(other, sequence)


@given(st.integers(0, 80), st.booleans(), st.integers(1, 255))
@example(80, True, 128)
@example(80, False, 128)
def test_carry_runs_through_any_number_of_bytes(count, above, first):
    """Intervals that straddle first/256 leave runs of 0xFF; the last symbol decides on which side of it to end."""
    reference, sequence = Textbook(), []
    for _ in range(count):
        border = (first << 8 * (reference.written + 6)) - reference.low
        slot = border // (reference.range // TOTAL)
        sequence.append((min(max(slot - 1, 0), TOTAL - 2), 2, TOTAL))
        reference.put(*sequence[-1])
    sequence.append((TOTAL - 1, 1, TOTAL) if above else (0, 1, TOTAL))
    data = encode(sequence)
    assert data == textbook(sequence)
    assert decodes(data, sequence)
    run = data[1 : 2 * count]
    if count:
        assert data[0] == (first if above else first - 1)
        assert set(run) == ({0} if above else {255})


def test_many_intervals_at_once():
    random = np.random.default_rng(1)
    frequencies = random.integers(1, 1 << 12, 500)
    starts = random.integers(0, TOTAL - (1 << 12), 500)
    state, out = range_coder.new_encoder(), np.zeros(4 * 500 + 8, np.uint8)
    range_coder.encode_intervals(state, out, starts, frequencies, 24)
    data = out[: range_coder.finish(state, out)].tobytes()
    assert data == textbook([(int(s), int(f), TOTAL) for s, f in zip(starts, frequencies, strict=True)])


def test_golden_bytes():
    sequence = [((7919 * i) % 4000, 1 + i % 90, 4096) for i in range(40)]
    assert encode(sequence).hex() == GOLDEN
    assert encode([]) == b""
    assert encode([(1, 1, 2)] * 8) == b"\xff"


GOLDEN = "000f50e01823909792ba845b2b1f16d0013a7828f4f085c9e5fcfc7c4ef18d4f1a24ebda5571d2e4"
