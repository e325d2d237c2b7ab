"""codec.quantization.strategies: every one makes a pack that comes back, and the simple ones are what they say."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import codec
from codec.quantization.calibration import Moments
from codec.quantization.quantizers import Binary, Matrix, Nearest, Ternary
from codec.quantization.strategies import STRATEGIES, SDClip

WEIGHTS = arrays(
    np.float32,
    st.tuples(st.integers(0, 9), st.integers(0, 9)),
    elements=st.floats(-1e4, 1e4, width=32) | st.sampled_from([0.0, 1e-30, 1e30]),
)


def matrix(weights: np.ndarray, role="matrix", inputs: np.ndarray | None = None) -> Matrix:
    height, width = weights.shape
    if inputs is None:
        inputs = np.eye(width, dtype=np.float32)
    return Matrix("w", role, weights, Moments(inputs, np.eye(height, dtype=np.float32)))


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("rank", [0, 1, 30])
def test_packs_come_back(name, rank):
    """With moments of any rank, columns without inputs among them."""
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(80, 60)).astype(np.float32)
    x, g = rng.normal(size=(rank, 60)).astype(np.float32), rng.normal(size=(rank, 80)).astype(np.float32)
    x[:, 7] = g[:, 3] = 0
    known = Moments(x.T @ x, g.T @ g)
    quantizer = STRATEGIES[name](1.0 if name.startswith("sdclip") else 0.05)
    expected = quantizer(Matrix("w", "matrix", weights, known))
    blob = codec.compress({"w": torch.from_numpy(weights)}, calibration={"w": known}, quantizer=quantizer)
    found = codec.open(blob).matrices["w"]
    assert np.array_equal(found.symbols, expected.symbols)
    assert np.array_equal(found.dequantize(), expected.dequantize())
    assert found.states == expected.states
    assert np.isfinite(found.dequantize()).all()
    if rank == 30:
        error = np.square(expected.dequantize() - weights).mean()
        assert error < (0.45 if name in ("ternary", "binary") else 0.1)


@given(WEIGHTS, st.sampled_from(sorted(STRATEGIES)))
def test_any_finite_matrix(weights, name):
    found = STRATEGIES[name](0.5)(matrix(weights))
    assert (found.symbols.shape, found.symbols.dtype) == (weights.shape, np.int32)
    assert np.isfinite(found.dequantize()).all()
    assert not found.dequantize()[~weights.any(1)].any() or found.states


@pytest.mark.parametrize("unit", [0.02, 0.5])
def test_nearest(unit):
    weights = np.random.default_rng(0).normal(size=(40, 30)).astype(np.float32)
    found = Nearest(unit)(matrix(weights))
    assert len(set(found.rows)) == 1
    assert found.rows[0] == pytest.approx(unit * np.sqrt(np.square(weights).mean()), rel=1e-3)
    assert np.array_equal(found.symbols, np.rint(weights / found.rows[0]))


def test_ternary_and_binary():
    weights = np.array([[4, -4, 0.1, 0], [2, 2, -1, -1], [0, 0, 0, 0]], np.float32)
    three, two = Ternary()(matrix(weights)), Binary()(matrix(weights))
    assert three.symbols.tolist() == [[1, -1, 0, 0], [1, 1, -1, -1], [0, 0, 0, 0]]
    assert three.rows == pytest.approx([4, 1.5, 0], rel=1e-3)
    assert two.symbols.tolist() == [[1, -1, 1, 0], [1, 1, -1, -1], [0, 0, 0, 0]]
    assert two.rows == pytest.approx([8.1 / 3, 1.5, 0], rel=1e-3)


def test_sdclip_is_the_challenges():
    weights = np.random.default_rng(0).normal(size=(40, 300)).astype(np.float32)
    weights[3] = 0
    for role, step in (("matrix", 12.85 / 31), ("embedding", 20 / 127)):
        found = SDClip(feedback=False)(matrix(weights, role))
        assert found.rows == pytest.approx(weights.std(1) * step, rel=1e-3)
        safe = np.where(found.rows > 0, found.rows, 1)[:, None]
        assert np.array_equal(found.symbols, np.rint(weights / safe))
        assert np.array_equal(SDClip()(matrix(weights, role)).symbols, found.symbols)  # inputs that do not correlate
    assert np.abs(SDClip(0.1)(matrix(weights)).symbols).max() == 31
    x = np.random.default_rng(1).normal(size=(900, 20)) @ np.random.default_rng(2).normal(size=(20, 300))
    known = matrix(weights, "matrix", (x.T @ x).astype(np.float32))
    losses = [np.square(x @ (SDClip(feedback=f)(known).dequantize() - weights).T).sum() for f in (True, False)]
    assert losses[0] < losses[1] / 2
