"""eval.museum.museum: every wrong claim is refuted for the right reason, no honest one is; and the peer artifact's
claim.
"""

import json
import shutil
import sys
from functools import cache

import numpy as np
import pytest
import torch

from eval.audit.audit import AS_FAR, REFUTED, audit
from eval.audit.challenge_predictor import PeerPredictor
from eval.museum.museum import EXHIBITS, MARGIN, build, documents, fresh_text
from eval.score.challenge import load_peer
from tests.eval.score.test_challenge import artifact, contents
from tests.support.audit_claims import assert_holds
from tests.support.helpers import shared
from trainer.model.gpt import GPT
from underpar.cli import main

EVIDENCE = {
    "hashed_cache": ("normalised", "do not sum to 1"),
    "two_pass": ("future_unseen", "even when only another document was changed"),
    "gate": ("target_unseen", "when only the token that it scores is changed"),
    "root": ("normalised", "do not sum to 1"),
    "fitted_delta": ("score_before_update", "is learned from before it is scored"),
    "length_sorted": ("order", "in another order than the text's"),
    "double_spaces": ("bytes", "leading space counted twice"),
    "byte_fallback": ("bytes", "byte fallback counted as three bytes"),
    "subset": ("complete", "5 of 13 documents were scored"),
    "case_lost": ("text", "case is lost"),
    "inflated": ("text", "13 of 13 documents cannot be had back"),
    "later_rows": ("context", "changes with later rows of its batch"),
    "remembers": ("memorised", "a fresh text of"),
}
"""The condition that names what is wrong, and what its evidence says."""

WRONG = [exhibit for exhibit in EXHIBITS if not exhibit.honest]
HONEST = [exhibit for exhibit in EXHIBITS if exhibit.honest]

ALIKE = ("root", "double_spaces", "case_lost")
"""Exhibits that break the same condition as another one does."""


def default(exhibits):
    """List exhibits, with a mark on those that are left out of a default run."""
    return [pytest.param(e, marks=pytest.mark.long) if e.name in ALIKE else e for e in exhibits]


@pytest.fixture(scope="module")
def museum(tmp_path_factory):
    return build(tmp_path_factory.mktemp("museum"))


@pytest.fixture(scope="module")
def audited(museum, tmp_path_factory):
    fresh = fresh_text(tmp_path_factory.mktemp("fresh"))
    return cache(lambda name: audit(museum[name], fresh=fresh, margin=MARGIN))


def test_thirteen_are_wrong_and_two_are_honest():
    assert {exhibit.name for exhibit in WRONG} == set(EVIDENCE)
    assert len(WRONG) == 13
    assert len(HONEST) == 2


@pytest.mark.parametrize("exhibit", default(WRONG), ids=lambda e: e.name)
def test_it_is_refuted_for_the_right_reason(audited, exhibit):
    found = audited(exhibit.name)
    assert found.verdict == REFUTED
    assert set(found.failed) - {"score"} == exhibit.broken
    name, words = EVIDENCE[exhibit.name]
    (condition,) = [c for c in found.conditions if c.name == name]
    assert not condition.ok
    assert words in condition.evidence
    assert found.claimed_bpb < found.honest_bpb + 0.005


@pytest.mark.parametrize("exhibit", HONEST, ids=lambda e: e.name)
def test_an_honest_one_holds(audited, exhibit):
    found = audited(exhibit.name)
    assert_holds(found)
    assert found.honest_bpb == pytest.approx(found.claimed_bpb, abs=0.002)


@pytest.mark.parametrize("exhibit", default(EXHIBITS), ids=lambda e: e.name)
def test_every_claim_is_what_its_author_would_compute(audited, exhibit):
    """The museum makes nothing up: the wrong way of scoring gives the claimed figure."""
    found = audited(exhibit.name)
    assert found.scored_bpb == pytest.approx(found.claimed_bpb, abs=6e-5)


def test_learning_in_blocks_reaches_no_farther_than_a_block(audited):
    (condition,) = [c for c in audited("fitted_delta").conditions if c.name == "score_before_update"]
    reach = int(condition.evidence.split("up to ")[1].split(" ")[0])
    assert 0 < reach < 32
    (condition,) = [c for c in audited("fitted_delta").conditions if c.name == "future_unseen"]
    assert "another document" not in condition.evidence


@pytest.mark.parametrize(
    "name, file, changes",
    [
        (
            "hashed_cache",
            "predictor.py",
            {
                "return 0.15 * super().d": "p = 0.15 * super().d",
                "* ratio\n": "* ratio\n        return p / p.sum(-1)[:, None]\n",
            },
        ),
        ("subset", "claim.toml", {"documents = 5": ""}),
        ("byte_fallback", "claim.toml", {'byte_table = "bytes.json"': ""}),
    ],
)
def test_what_is_repaired_holds(museum, audited, tmp_path, name, file, changes):
    """A refuted claim with only its wrong undone, at the price that the audit named, holds."""
    folder = shutil.copytree(museum[name], tmp_path / name)
    text = (folder / file).read_text()
    for old, new in changes.items():
        assert text.count(old) == 1
        text = text.replace(old, new)
    (folder / file).write_text(text)
    before = audited(name)
    toml = folder / "claim.toml"
    toml.write_text(toml.read_text().replace(f"= {before.claimed_bpb}", f"= {before.honest_bpb}"))
    found = audit(folder, fresh=fresh_text(tmp_path), margin=MARGIN)
    assert_holds(found)
    assert found.claimed_bpb == before.honest_bpb


def test_the_text_is_fit_for_the_museum():
    assert len(documents()) == 13
    assert sum(map(len, documents())) == 5190
    assert all(document.decode() != document.decode().lower() for document in documents())


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_the_peer_artifact_is_worth_what_it_claims(tmp_path, capsys, monkeypatch):
    """A really trained artifact of the challenge's baseline, through the command: minutes."""
    blob = shared("data", "peer", "baseline_9x512_sp1024.int8.ptz")
    (tmp_path / "predictor.py").write_text(
        "from pathlib import Path\n\nfrom eval.audit.challenge_predictor import PeerPredictor\n\n\ndef make():\n"
        f"    return PeerPredictor(Path({blob.name!r}).read_bytes())\n"
    )
    (tmp_path / "claim.toml").write_text(
        f'claimed_bpb = 1.5094065\npredictor = "predictor.py:make"\nfiles = ["{blob}"]\nbatch = 64\n'
        f'tokenizer = "{shared("data", "tokenizers", "fineweb_1024_bpe.model")}"\n[text]\n'
        f'path = "{shared("data", "val", "fineweb_val_head_sp1024.bin.xz")}"\n'
        'layout = "flat"\nwindow = 1024\ntargets = 65536\n[scored]\ntext_bytes = 159910\n'
    )
    monkeypatch.setattr(sys, "argv", ["underpar", "audit", str(tmp_path), "--json"])
    main()
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["verdict"] == AS_FAR  # it is given as tokens, and is small for its artifact
    assert (found["tokens"], found["text_bytes"]) == (65536, 159910)
    assert found["scored_bpb"] == pytest.approx(1.5094065, abs=1e-5)
    assert found["ideal_bpb"] == pytest.approx(1.5094065, abs=1e-4)
    assert 0 <= 8 * found["coded_bytes"] - found["ideal_bpb"] * 159910 <= 64


def test_the_cached_peer_is_the_float_model(tmp_path):
    """Token by token with a cache against whole rows, and rows that end beside rows that go on."""
    blob = artifact(contents())
    state, config = load_peer(blob)
    model = GPT(config).eval()
    model.load_state_dict(state)
    text = np.random.default_rng(1).integers(0, 1024, (3, 20))
    with torch.inference_mode():
        expected = model(torch.from_numpy(text)).double().softmax(-1).numpy()
    predictor = PeerPredictor(blob)
    for _ in range(2):  # a second batch begins anew
        predictor.reset(text[:, 0])
        for t in range(20):
            assert np.allclose(predictor.distribution(), expected[:, t], atol=1e-6)
            if t < 19:
                predictor.update(text[:, t + 1])
    predictor.update(np.array([-1, 5, 5]))
    assert predictor.distribution().shape == (3, 1024)
