"""codec.entropy.adaptive_bit: bits come back at about their entropy, and slots learn alike in any integer type."""

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from codec.entropy import range_coder
from codec.entropy.adaptive_bit import EVEN, MOST, PRECISION, SHARE_BITS, code_adaptive, code_bit, learn, share


def slots(count: int) -> tuple[np.ndarray, np.ndarray]:
    return np.full(count, EVEN, np.int32), np.zeros(count, np.int16)


def encoded(bits: np.ndarray, contexts: np.ndarray, most: int = MOST) -> bytes:
    state, out = range_coder.new_encoder(), np.zeros(2 * len(bits) + 16, np.uint8)
    probabilities, counts = slots(4)
    for bit, slot in zip(bits, contexts, strict=True):
        assert code_adaptive(state, out, probabilities, counts, slot, bit, most, False) == bit
    return out[: range_coder.finish(state, out)].tobytes()


def decoded(stream: bytes, contexts: np.ndarray, most: int = MOST) -> list[int]:
    state, data = range_coder.new_encoder(), np.frombuffer(stream, np.uint8).copy()
    range_coder.start_decoder(state, data)
    probabilities, counts = slots(4)
    found = [code_adaptive(state, data, probabilities, counts, slot, 0, most, True) for slot in contexts]
    assert range_coder.ended(state, len(stream))
    return found


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 3)), max_size=300), st.sampled_from([1, 255, MOST]))
def test_any_bits_come_back(pairs, most):
    bits, contexts = np.array(pairs, np.int64).reshape(-1, 2).T
    assert decoded(encoded(bits, contexts, most), contexts, most) == bits.tolist()


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(1, (1 << SHARE_BITS) - 1)), max_size=100))
def test_any_probabilities(pairs):
    state, out = range_coder.new_encoder(), np.zeros(2 * len(pairs) + 16, np.uint8)
    for bit, ones in pairs:
        code_bit(state, out, ones, bit, False)
    data = out[: range_coder.finish(state, out)].copy()
    ideal = -sum(np.log2((ones if bit else (1 << SHARE_BITS) - ones) / (1 << SHARE_BITS)) for bit, ones in pairs)
    assert 8 * len(data) <= ideal + 8 + 0.001 * len(pairs)
    state = range_coder.new_encoder()
    range_coder.start_decoder(state, data)
    assert [code_bit(state, data, ones, 0, True) for _, ones in pairs] == [bit for bit, _ in pairs]


@pytest.mark.parametrize("chance", [0.5, 0.1, 0.01])
def test_a_stationary_source_costs_its_entropy(chance):
    bits = (np.random.default_rng(0).random(20_000) < chance).astype(np.int64)
    mean = bits.mean()
    entropy = -len(bits) * (mean * np.log2(mean) + (1 - mean) * np.log2(1 - mean))
    assert 8 * len(encoded(bits, np.zeros(len(bits), np.int64))) < entropy + 0.0015 * len(bits) + 16


def test_a_slot_learns_the_frequency():
    probabilities, counts = np.array([EVEN]), np.zeros(1, np.int64)
    bits = np.random.default_rng(0).random(4000) < 0.1
    for bit in bits:
        learn(probabilities, counts, 0, bit, 1023)
    assert abs(share(probabilities[0]) / (1 << SHARE_BITS) - bits[-2000:].mean()) < 0.02
    assert counts[0] == 1023


@pytest.mark.parametrize("bits", [[1], [0], [1, 0], [0] * 50 + [1] * 50])
@pytest.mark.parametrize("most", [255, 1023])
def test_narrow_slots_learn_as_wide_ones(bits, most):
    wide = np.full(1, EVEN), np.zeros(1, np.int64)
    narrow = wide[0].astype(np.int32), wide[1].astype(np.int16)
    for bit in bits * (3000 // len(bits)):
        for probabilities, counts in (wide, narrow):
            learn(probabilities, counts, 0, bit, most)
        assert (narrow[0][0], narrow[1][0]) == (wide[0][0], wide[1][0])


def test_shares_are_never_nothing():
    assert share(0) == 1
    assert share((1 << PRECISION) - 1) == (1 << SHARE_BITS) - 1


def test_golden_bytes():
    """A new digest here means new formats of packs and archives."""
    n = np.arange(3000)
    stream = encoded((n * n % 7 < 2).astype(np.int64), n % 4)
    assert hashlib.sha256(stream).hexdigest()[:16] == "3465114fca7137da"
