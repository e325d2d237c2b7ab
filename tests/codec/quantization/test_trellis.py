"""codec.quantization.trellis: trellises that are ones, paths that are the best ones, and the gain that they are for."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from codec.quantization.sensitivity import TRELLIS_RATE
from codec.quantization.trellis import CODES, predecessors, search, transitions
from tests.support.helpers import parities

SAMPLES = st.floats(-1e6, 1e6)


@pytest.mark.parametrize("states", CODES)
def test_the_table_is_a_trellis(states):
    following = transitions(states)
    assert (following.shape, following.dtype) == ((states, 2), np.int64)
    assert np.bincount(following.ravel(), minlength=states).tolist() == [2] * states
    assert (following[:, 0] != following[:, 1]).all()
    reached = {0}
    for _ in range(states):
        reached |= {int(s) for state in reached for s in following[state]}
    assert reached == set(range(states))
    assert {s & 1 for s in reached} == {0, 1}


@pytest.mark.parametrize("states", CODES)
def test_predecessors_are_transitions_backwards(states):
    following, before = transitions(states), predecessors(states)
    for z1 in (0, 1):
        assert sorted(before[z1]) == list(range(states))
        assert (following[before[z1].astype(int), z1] == np.arange(states)).all()
    assert (before[:, : states // 2] % 2 == 0).all()
    assert (before[:, states // 2 :] % 2 == 1).all()


@pytest.mark.parametrize("states", CODES)
def test_paths_satisfy_the_parity_check(states):
    """sum_i h0_i z0[n - i] + h1_i z1[n - i] is even: what defines the code."""
    h0, h1 = CODES[states]
    degree = states.bit_length() - 1
    q = np.random.default_rng(0).integers(-50, 50, 300).astype(np.int32)
    z0, z1 = parities(q, transitions(states)).astype(int), (q >> 1) & 1
    taps = np.arange(degree + 1)
    for n in range(degree, len(q)):
        assert ((h0 >> taps & 1) @ z0[n - taps] + (h1 >> taps & 1) @ z1[n - taps]) % 2 == 0


def exhaustive(samples: np.ndarray, following: np.ndarray, state: int) -> float:
    """The least squared error over all paths."""
    best = np.inf
    for path in product((0, 1), repeat=len(samples)):
        s, cost = state, 0.0
        for x, z1 in zip(samples, path, strict=True):
            subset = (s & 1) + 2 * z1
            near = int((x - subset) // 4)
            cost += min((x - subset - 4 * k) ** 2 for k in (near, near + 1))
            s = int(following[s, z1])
        best = min(best, cost)
    return best


@pytest.mark.parametrize("states", CODES)
def test_the_path_is_the_best_one(states):
    rng, following = np.random.default_rng(states), transitions(states)
    for count in [0, 1, 2, 3, 5, 8, 9] * 2:
        samples, state = rng.normal(size=count) * 3, int(rng.integers(states))
        found, _ = search(samples, predecessors(states), state)
        assert np.square(found - samples).sum() == pytest.approx(exhaustive(samples, following, state))


@given(arrays(np.float64, st.integers(0, 60), elements=SAMPLES), st.sampled_from(sorted(CODES)), st.integers(0, 60))
def test_integers_lie_on_the_path(samples, states, cut):
    """In one search, or in two of which the second begins where the first ended."""
    following = transitions(states)
    before = predecessors(states)
    whole, _ = search(samples, before, 0)
    head, state = search(samples[:cut], before, 0)
    tail, end = search(samples[cut:], before, state)
    for found in (whole, np.concatenate((head, tail))):
        assert found.dtype == np.int32
        assert np.array_equal(found & 1, parities(found, following))
        assert (np.abs(found - samples) <= 2).all() or states > 4 or len(samples) < 3
    s = 0
    for q in [*head, *tail]:
        s = following[s, (q >> 1) & 1]
    assert s == end


def rate_and_error(samples: np.ndarray, step: float, states: int) -> tuple[float, float]:
    """Bits a sample by the frequencies of what is coded, and the mean squared error; no trellis for 0 states."""
    if not states:
        found, z0, scale = np.rint(samples / step).astype(int), np.zeros(len(samples), int), 1
    else:
        found, _ = search(samples * 2 / step, predecessors(states), 0)
        z0, scale = parities(found, transitions(states)).astype(int), 2
    entropy = 0.0
    for parity in set(z0):
        shares = np.unique((found[z0 == parity] - parity) // scale, return_counts=True)[1] / len(samples)
        entropy -= float((shares * np.log2(shares / shares.sum())).sum())
    return entropy, float(np.square(found * step / scale - samples).mean())


@pytest.mark.parametrize("states, least", [(4, 0.13), (8, 0.17), (64, 0.20), (256, 0.21)])
def test_gain_over_a_uniform_quantizer(states, least):
    """Bits a weight at equal error on a Gaussian of 3.3 bits; at most 0.2546, the whole space-filling loss."""
    samples, step = np.random.default_rng(0).normal(size=100_000), 2 ** (2.047 - 3.3)
    entropy, error = rate_and_error(samples, step, states)
    assert entropy == pytest.approx(3.3, abs=0.02)
    assert least <= 0.2546 - (entropy + 0.5 * np.log2(error)) < 0.2546


@pytest.mark.parametrize("rate, least", [(0.5, -1.0), (TRELLIS_RATE, 0.19), (1.3, 0.25), (2.0, 0.23)])
def test_gain_at_low_rates(rate, least):
    """Against a uniform quantizer and its own entropy, at equal error."""
    samples = np.random.default_rng(0).normal(size=50_000)

    def distance(states: int) -> float:
        """Bits above the rate-distortion bound, at the step that has this rate."""
        low, high = 0.1, 16.0
        for _ in range(16):
            step = (low * high) ** 0.5
            entropy, error = rate_and_error(samples, step, states)
            low, high = (step, high) if entropy > rate else (low, step)
        return entropy + 0.5 * float(np.log2(error))

    gain = distance(0) - distance(256)
    assert gain >= least
    assert rate >= TRELLIS_RATE or gain < 0
