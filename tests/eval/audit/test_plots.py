"""eval.audit.plots: pictures that say what the audits found."""

from dataclasses import replace

import numpy as np

from eval.audit.audit import AS_FAR, HOLDS, REFUTED, Audit, audit
from eval.audit.conditions import Condition
from eval.audit.plots import WORDS, claimed_and_coded, sums
from eval.figures import png
from tests.support.audit_claims import claim_folder

GOOD = Audit("good", HOLDS, 2.0, 2.0, 2.0, 2.0, None, [], 1, 1, 1, 0.0, 0.0, 1, {}, 1.0)
BAD = replace(
    GOOD,
    name="bad",
    verdict=REFUTED,
    claimed_bpb=0.5,
    conditions=[Condition(name, False, "") for name in ("normalised", "decodes", "score")],
)


def texts(figure):
    axes = figure.axes[0]
    return [text.get_text() for text in axes.texts] + [label.get_text() for label in axes.get_yticklabels()]


def test_claims_have_their_gap_and_their_reason():
    figure = claimed_and_coded([GOOD, BAD], {"bad": "a wrong one"})
    found = texts(figure)
    assert {"+1.50", "sums are not 1", "holds", "a wrong one", "good"} <= set(found)
    assert png(figure).startswith(b"\x89PNG")


def test_a_claim_that_is_only_too_low_says_so():
    low = replace(BAD, conditions=[Condition("score", False, "")])
    assert WORDS["score"] in texts(claimed_and_coded([low], {}))


def test_what_could_not_be_checked_is_no_plain_holds():
    some = replace(GOOD, verdict=AS_FAR, conditions=[Condition("text", None, "")])
    assert "holds as far as checked" in texts(claimed_and_coded([some], {}))


def test_every_condition_has_words(tmp_path):
    assert {condition.name for condition in audit(claim_folder(tmp_path / "c")).conditions} == set(WORDS)


def test_sums_are_drawn():
    figure = sums({"one": np.ones(5), "other": np.array([1, 10, 100.0])})
    assert [len(line.get_ydata()) for line in figure.axes[0].lines] == [5, 3]
    assert figure.axes[0].get_yscale() == "log"
