"""codec.quantization.calibration: moments that come back, files that are others, and moments of another model."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save
from safetensors.torch import save as save_torch

from codec.errors import FormatError, MismatchError
from codec.quantization.calibration import Moments, load_calibration, moments_of, save_calibration


def moments(rows: int, columns: int) -> Moments:
    rng = np.random.default_rng(rows)
    return Moments(rng.normal(size=(columns, columns)).astype(np.float32), rng.random(rows, np.float32))


def test_moments_come_back(tmp_path):
    written = {"a.weight": moments(3, 2), "b": moments(1, 1), "x.inputs": moments(4, 4), "wide": moments(2, 5)}
    written["strided"] = Moments(written["wide"].inputs.T, written["wide"].outputs[::-1])
    save_calibration(tmp_path / "c", written)
    found = load_calibration(tmp_path / "c")
    assert found.keys() == written.keys()
    for name, expected in written.items():
        assert np.array_equal(found[name].inputs, expected.inputs)
        assert np.array_equal(found[name].outputs, expected.outputs)
        assert found[name].inputs.dtype == np.float32


MATRIX, VECTOR = np.ones((2, 2), np.float32), np.ones(2, np.float32)
OTHERS = {
    "nothing": b"",
    "junk": b"junk" * 10,
    "huge header": b"\xff" * 7 + b"\x7f" + b"{}",
    "no tensors": save({}),
    "a checkpoint": save({"blocks.0.attn.c_q.weight": MATRIX, "tok_emb.weight": MATRIX}),
    "inputs only": save({"a.inputs": MATRIX}),
    "outputs only": save({"a.outputs": VECTOR}),
    "more": save({"a.inputs": MATRIX, "a.outputs": VECTOR, "b.outputs": VECTOR}),
    "an unknown type": save({"a.inputs": MATRIX, "a.outputs": VECTOR}).replace(b"F32", b"F99"),
    "bfloat16": save_torch({"a.inputs": torch.ones(2, 2).bfloat16(), "a.outputs": torch.ones(2).bfloat16()}),
}


@pytest.mark.parametrize("content", OTHERS.values(), ids=OTHERS)
def test_other_files(tmp_path, content):
    (tmp_path / "c").write_bytes(content)
    with pytest.raises(FormatError, match=r"c: not what `underpar calibrate` writes"):
        load_calibration(tmp_path / "c")


def test_truncated_files(tmp_path):
    save_calibration(tmp_path / "whole", {"a": moments(3, 2)})
    content = (tmp_path / "whole").read_bytes()
    for size in range(len(content)):
        (tmp_path / "c").write_bytes(content[:size])
        with pytest.raises(FormatError):
            load_calibration(tmp_path / "c")
    with pytest.raises(FormatError, match=r"calibration .*none: No such file"):
        load_calibration(tmp_path / "none")


@given(st.binary(max_size=100))
def test_garbage(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("garbage") / "c"
    path.write_bytes(content)
    with pytest.raises(FormatError):
        load_calibration(path)


def test_moments_of_a_matrix():
    known = {"a": moments(3, 2)}
    assert moments_of(known, "a", (3, 2)) is known["a"]
    none = moments_of(None, "a", (3, 2))
    assert np.array_equal(none.inputs, np.ones(2, np.float32))
    assert np.array_equal(none.outputs, np.ones(3, np.float32))
    with pytest.raises(MismatchError, match="no moments of b"):
        moments_of(known, "b", (3, 2))


@pytest.mark.parametrize("shape", [(2, 3), (3, 3), (4, 2), (0, 0)])
def test_moments_of_another_shape(shape):
    with pytest.raises(MismatchError, match=r"calibration of a: moments \(2, 2\) and \(3,\), expected"):
        moments_of({"a": moments(3, 2)}, "a", shape)
    with pytest.raises(MismatchError):
        moments_of({"a": Moments(MATRIX.ravel(), VECTOR)}, "a", (2, 2))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_moments_that_are_not_finite(value):
    for broken in (Moments(MATRIX * value, VECTOR), Moments(MATRIX, VECTOR * value)):
        with pytest.raises(FormatError, match="calibration of a: not all moments are finite"):
            moments_of({"a": broken}, "a", (2, 2))
