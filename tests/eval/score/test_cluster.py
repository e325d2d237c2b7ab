"""eval.score.cluster: a score from a Ray cluster is that of this process."""

import os

import numpy as np
import pytest

from eval.score.bpb import score
from eval.score.models import LoadedModel
from eval.score.windows import Policy
from tests.support.helpers import PLAIN, ROOT, random_weights
from trainer.data.sample import sp1024, val_documents


@pytest.mark.timeout(600)
def test_the_same_score(monkeypatch):
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'underpar[ray]'")
    from eval.score.cluster import runner_on

    monkeypatch.setattr("eval.score.batches.MAX_LOGITS", 1 << 16)
    monkeypatch.setattr("eval.score.cluster.MAX_LOGITS", 1 << 16)
    loaded = LoadedModel(PLAIN, sp1024(), random_weights(PLAIN, 0))
    texts = [d[:600] for d, _ in zip(val_documents(), range(8), strict=False)]
    stream = np.concatenate([[1, *sp1024().encode(text)] for text in texts]).astype(np.uint16)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    ray.init(address="local", num_cpus=2, object_store_memory=80 << 20, include_dashboard=False, log_to_driver=False)
    try:
        for policy in (Policy.DOCUMENT, Policy.FLAT):
            told: list[float] = []
            here = score(loaded.float_model(), sp1024(), stream, policy)
            with runner_on(loaded, "local", told.append) as runner:
                there = score(loaded.float_model(), sp1024(), stream, policy, advance=told.append, runner=runner)
            assert there.nats == pytest.approx(here.nats, rel=1e-6)  # threads may add in another order
            assert (there.tokens, there.text_bytes) == (here.tokens, here.text_bytes) and sum(told) == here.tokens
    finally:
        ray.shutdown()
    assert os.environ["PYTHONPATH"] == str(ROOT)
