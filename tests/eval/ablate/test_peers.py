"""eval.ablate.peers: each peer's arithmetic against its definition written out, and its bytes really decoded."""

import math

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from codec.errors import CodecError, FormatError
from codec.quantization.calibration import Moments
from codec.quantization.feedback import damped
from codec.quantization.quantized import Quantized
from eval.ablate import peers as weight_peers
from eval.ablate.lossless import STAGES, Stage, Tables
from eval.ablate.low_rank import apply_repairs, is_repair, repairs
from eval.ablate.peer import Peer
from eval.ablate.peers import PEERS, absmax_rows, later, quantize_tables, sdclip, table_peer
from eval.ablate.rates import column_bytes, entropy_bits, rescaled
from eval.ablate.subject import Subject, load_subject
from tests.support.helpers import EVERY_OPTION, lossless_tokenizer, random_weights


@pytest.fixture(scope="module")
def subject():
    return Subject(random_weights(EVERY_OPTION), EVERY_OPTION, lossless_tokenizer(), None)


def runnable():
    for name, peer in PEERS.items():
        marks = [pytest.mark.skip(reason=peer.missing())] if peer.missing() else []
        marks += [pytest.mark.long] if name.endswith("lrzip") else []
        yield pytest.param(peer, id=name, marks=marks)


@pytest.mark.parametrize("peer", list(runnable()))
def test_every_peer_encodes_and_decodes(subject, peer):
    coded = peer.run(subject, 1.0, 1.0)
    error = subject.relative_error(coded.state)
    assert {n: t.shape for n, t in coded.state.items()} == {n: t.shape for n, t in subject.state.items()}
    if peer.lossless:
        assert all(torch.equal(coded.state[n], t) for n, t in subject.state.items())
        return
    bits = 8 * coded.bytes / subject.parameters
    assert 2 < bits < 10 and 1e-6 < error < 0.05
    entropy_bound = 0.5 * math.log2(1 / error) - 1  # of Gaussian weights, rows of unlike size granted a bit
    assert bits > entropy_bound
    coarser = peer.run(subject, 2.0, 1.0)
    assert coarser.bytes < coded.bytes
    assert subject.relative_error(coarser.state) > 2 * error


def test_the_embedding_has_a_scale_of_its_own(subject):
    one = quantize_tables(subject, sdclip, 1.5, 1.0)
    other = quantize_tables(subject, sdclip, 1.5, 0.5)
    for name, table in one.tables.items():
        ratio = 2.0 if name == "tok_emb.weight" else 1.0
        np.testing.assert_allclose(table.steps.astype(float), ratio * other.tables[name].steps.astype(float), rtol=2e-3)


def moments(columns, diagonal=False, seed=0):
    x = np.random.default_rng(seed).normal(size=(3 * columns, columns)) * np.linspace(0.1, 2, columns)
    inputs = (x.T @ x / len(x)).astype(np.float32)
    return Moments(np.diag(inputs) if diagonal else inputs, np.ones(1, np.float32))


def test_absmax_rows_is_round_to_nearest():
    weights = np.array([[1.0, -0.5, 0.26], [0.0, 0.0, 0.0]], np.float32)
    symbols, steps = absmax_rows(6)(weights, "matrix", moments(3), 1.0)
    assert symbols.tolist() == [[31, -15, 8], [0, 0, 0]] or symbols.tolist() == [[31, -16, 8], [0, 0, 0]]
    assert steps[0] == np.float16(1 / 31) and steps[1] > 0


def test_sdclip_is_gptq_with_the_documented_steps():
    """Against a slow GPTQ that eliminates one column after the other from the inverse moment."""
    weights = np.random.default_rng(1).normal(0, 0.1, (5, 12)).astype(np.float32)
    calibrated = moments(12)
    symbols, steps = sdclip(weights, "matrix", calibrated, 1.0)
    expected = (12.85 * torch.from_numpy(weights).std(1) / 31).half().numpy()
    assert np.array_equal(steps, expected)
    wide = steps.astype(np.float64)
    moment = calibrated.inputs.astype(np.float64)
    moment += 0.01 * np.trace(moment) / 12 * np.eye(12)
    left = list(np.argsort(-np.diag(calibrated.inputs), kind="stable"))
    work, slow = weights.astype(np.float64).copy(), np.zeros((5, 12))
    while left:
        j = left[0]
        inverse = np.linalg.inv(moment[np.ix_(left, left)])
        slow[:, j] = np.rint(work[:, j] / wide).clip(-31, 31)
        error = (work[:, j] - slow[:, j] * wide) / inverse[0, 0]
        work[:, left] -= error[:, None] * inverse[0]
        left = left[1:]
    assert np.array_equal(symbols, slow)


def test_sdclip_feeds_nothing_back_through_a_diagonal_and_gives_the_embedding_8_bits():
    weights = np.random.default_rng(2).normal(0, 3, (4, 10)).astype(np.float32)
    weights[0, 0] = 60.0
    symbols, steps = sdclip(weights, "embedding", moments(10, diagonal=True), 0.1)
    plain = np.rint(weights / steps[:, None].astype(np.float64)).clip(-127, 127)
    assert np.array_equal(symbols, plain) and np.abs(symbols).max() == 127
    zero, _ = sdclip(np.zeros((2, 10), np.float32), "matrix", moments(10), 1.0)
    assert not zero.any()


def test_the_challenges_last_codec():
    """Clips by kind, and an embedding of 7 bits."""
    weights = np.random.default_rng(2).normal(0, 3, (4, 1000)).astype(np.float32)
    deviations = torch.from_numpy(weights).std(1)
    flat = Moments(np.ones(1000, np.float32), np.ones(4, np.float32))
    for kind, sigmas, limit in (("mlp", 11.5, 31), ("matrix", 13.0, 31), ("embedding", 14.0, 63)):
        symbols, steps = later(weights, kind, flat, 1.0)
        assert np.array_equal(steps, (sigmas * deviations / limit).half().numpy())
        assert np.array_equal(symbols, np.rint(weights / steps[:, None].astype(np.float64)))


def test_corrections_of_low_rank():
    """Of the worst matrix alone; within 2 and 4 bits; most of an error of that rank goes away, and none is made."""
    generator = np.random.default_rng(5)
    thin = (np.sign(generator.normal(size=(60, 4))) @ generator.normal(size=(4, 150))).astype(np.float32)
    errors = {"small": 0.1 * thin, "large": thin}
    parts = repairs(errors, 1)
    assert all(is_repair(name) and name.startswith("large") for name in parts)
    assert not is_repair("large")
    assert {part.min() >= -8 and part.max() <= 7 for part in parts.values() if part.dtype == np.int8} == {True}
    zero = np.zeros_like(thin)
    left = thin - apply_repairs("large", zero, parts)
    assert np.square(left).sum() < 0.5 * np.square(thin).sum()
    assert apply_repairs("small", zero, parts) is zero
    noise = generator.normal(size=(60, 150)).astype(np.float32)
    assert np.square(noise - apply_repairs("n", zero, repairs({"n": noise}, 3))).sum() < np.square(noise).sum()


def test_watersics_factors_lower_the_error_that_counts():
    """As the weighted error of any integers is lowered; integers whose factors are known give these factors."""
    generator = np.random.default_rng(6)
    moment = damped(moments(40).inputs)
    integers = generator.integers(-4, 5, (30, 40)).astype(np.int32)
    rows, columns = np.exp2(generator.uniform(-1, 1, 30)), np.exp2(generator.uniform(-1, 1, 40))
    truth = (integers * rows[:, None] * columns).astype(np.float32)

    def cost(r, c):
        error = truth - integers * r[:, None] * c
        return float(((error @ moment) * error).sum())

    start = Quantized(integers, np.ones(30, np.float32), np.ones(40, np.float32))
    assert cost(*rescaled(truth, start, moment)) < 1e-2 * cost(np.ones(30), np.ones(40))
    assert entropy_bits(np.arange(16)) == 64
    assert column_bytes(np.tile(np.arange(4, dtype=np.int32), (3, 1)).T) == 3


def test_a_stage_that_loses_something_is_caught(subject):
    def lose(blob: bytes) -> Tables:
        found = STAGES["zlib-9"].decode(blob)
        return Tables(found.tables, {name: other * 0 for name, other in found.others.items()})

    with pytest.raises(CodecError, match="does not restore"):
        table_peer(sdclip, Stage(STAGES["zlib-9"].encode, lose)).run(subject, 1.0, 1.0)


def test_peers_that_cannot_run_say_why(monkeypatch):
    monkeypatch.setattr(weight_peers.importlib, "import_module", lambda name: 1 / 0)
    for name in ("zipnn", "nncodec"):
        assert name in PEERS[name].missing() and "division" in PEERS[name].missing()
    assert Peer(lambda *_: None).missing() == ""


def test_subjects_of_other_projects(tmp_path):
    path = tmp_path / "other.safetensors"
    state = {"embeddings.word": torch.randn(80, 64), "layer": torch.randn(64, 8, 9).half(), "bias": torch.ones(64)}
    save_file({**state, "ids": torch.arange(9000).view(9, 1000)}, path)
    subject = load_subject(path)
    roles = {"embeddings.word": "embedding", "layer": "matrix", "bias": "vector", "ids": "vector"}
    assert subject.roles == roles and subject.companions == 0 and subject.config is None
    assert subject.relative_error(subject.state) == 0
    half = {name: tensor.float() * 0.5 for name, tensor in subject.state.items()}
    assert subject.relative_error(half) == pytest.approx(0.25)
    coded = PEERS["sdclip+brotli"].run(subject, 1.0, 1.0)
    assert torch.equal(coded.state["ids"], subject.state["ids"]) and coded.state["layer"].shape == (64, 8, 9)


def test_subjects_that_cannot_be_compared_are_refused(tmp_path):
    save_file({"bias": torch.ones(64)}, tmp_path / "small.safetensors")
    save_file({"w": torch.full((80, 80), math.nan)}, tmp_path / "nan.safetensors")
    for name, message in (("small", "nothing to quantize"), ("nan", "not finite")):
        with pytest.raises(FormatError, match=message):
            load_subject(tmp_path / f"{name}.safetensors")
