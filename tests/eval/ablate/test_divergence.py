"""eval.ablate.divergence: against a loop over positions in float64, and what pairing is worth."""

import math

import numpy as np
import pytest
import torch

from codec.errors import CodecError
from codec.model.config import ModelConfig
from codec.model.tokenizer import BOS
from eval.ablate import divergence
from eval.ablate.divergence import Ruler, mean_of
from eval.score.bpb import score
from eval.score.windows import Policy
from tests.support.helpers import random_weights
from trainer.data.sample import sp1024, val_documents
from trainer.model.gpt import GPT

CONFIG = ModelConfig(window=16, num_layers=2, model_dim=16, num_heads=2, num_kv_heads=1)


@pytest.fixture(scope="module")
def stream():
    tokens = [np.concatenate(([BOS], sp1024().encode(d))) for d in list(val_documents())[:2]]
    return np.concatenate(tokens)[:200].astype(np.uint16)


def network(noise=0.0):
    model = GPT(CONFIG)
    generator = torch.Generator().manual_seed(1)
    weights = random_weights(CONFIG)
    model.load_state_dict({n: w + noise * torch.randn(w.shape, generator=generator) for n, w in weights.items()})
    return model.eval()


@pytest.mark.parametrize("batch, chunk", [(1 << 14, 1 << 22), (1, 3000)])
def test_matches_a_loop_over_positions(stream, monkeypatch, batch, chunk):
    monkeypatch.setattr(divergence, "BATCH_TOKENS", batch)
    monkeypatch.setattr(divergence, "MAX_LOGITS", chunk)
    float_model, variant = network(), network(0.05)
    found = Ruler(float_model, sp1024(), stream, 100).measure(variant.state_dict())
    assert found.kl.shape == found.nats.shape == (100 // CONFIG.window,)
    for w in range(len(found.kl)):
        kl = nats = 0.0
        for t in range(CONFIG.window):
            at = w * CONFIG.window
            seen = torch.from_numpy(stream[at : at + t + 1].astype(np.int64))[None]
            with torch.inference_mode():
                p = float_model(seen)[0, -1].double().softmax(-1).numpy()
                q = variant(seen)[0, -1].double().softmax(-1).numpy()
            kl += float((p * np.log(p / q)).sum())
            nats -= math.log(q[stream[at + t + 1]])
        assert found.kl[w] == pytest.approx(kl, rel=1e-4)
        assert found.nats[w] == pytest.approx(nats, rel=1e-6)


def test_the_reference_diverges_from_itself_by_nothing(stream):
    ruler = Ruler(network(), sp1024(), stream, 100)
    found = ruler.measure(network().state_dict())
    assert np.abs(found.kl).max() == 0
    assert ruler.kl(found) == ruler.tax(found) == (0, 0)


def test_bpb_is_that_of_the_flat_policy(stream):
    ruler = Ruler(network(), sp1024(), stream, 10**9)
    expected = score(network(), sp1024(), stream, Policy.FLAT)
    assert ruler.text_bytes == expected.text_bytes
    assert ruler.bpb(ruler.measure(network().state_dict())).value == pytest.approx(expected.bpb, rel=1e-6)


def test_pairing_removes_what_windows_have_in_common(stream):
    ruler = Ruler(network(), sp1024(), stream, 190)
    found = ruler.measure(network(0.003).state_dict())
    assert 0 < ruler.tax(found).error < ruler.bpb(found).error / 5


def test_standard_error_is_that_of_a_mean_of_independent_windows():
    generator = np.random.default_rng(0)
    means = [mean_of(generator.normal(3, 2, 50), 50 * 4) for _ in range(2000)]
    assert np.std([m.value for m in means]) == pytest.approx(np.mean([m.error for m in means]), rel=0.05)
    assert np.mean([m.value for m in means]) == pytest.approx(0.75, rel=0.01)


def test_too_little_text_is_refused(stream):
    with pytest.raises(CodecError, match="two windows"):
        Ruler(network(), sp1024(), stream[:32], 100)
