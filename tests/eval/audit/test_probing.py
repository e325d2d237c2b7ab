"""eval.audit.probing: what a predictor that peeks does with what it sees."""

import pytest

from eval.audit.claims import load_claim
from eval.audit.coding import Place
from eval.audit.probing import probe
from eval.audit.sandbox import Limits
from tests.support.audit_claims import HEAD, claim_folder

PEEK = """
def peek(self, documents): self.text = documents
P.peek = peek
plain = P.distribution
def distribution(self):
    p = plain(self)
    if hasattr(self, "text"):
        for row, document in zip(p, self.text):
            use(row, document, self.position, self.text)
    return p / p.sum(-1, keepdims=True)
P.distribution = distribution
"""

TEXTS = [f"the text of document {n}, long enough to be probed in" for n in range(4)]


def leaks(folder, use):
    return probe(
        load_claim(claim_folder(folder, HEAD + PEEK + f"def use(row, document, t, all): {use}\n", TEXTS)), Limits()
    )


def test_peeking_without_using_it_is_no_leak(tmp_path):
    found = leaks(tmp_path / "c", "pass")
    assert (found.target, found.before, found.future, found.across) == (None, None, None, None)
    assert found.tested > 100


def test_using_the_past_is_no_leak(tmp_path):
    found = leaks(tmp_path / "c", "row[document[:t]] += 1")
    assert (found.target, found.before, found.future, found.across) == (None, None, None, None)


@pytest.mark.parametrize(
    "use, kinds",
    [
        ("row[document[t : t + 1]] += 1", {"target"}),
        ("row[document[t + 1 : t + 2]] += 1", {"before", "future"}),
        ("row[document[t:]] += 1", {"target", "before", "future"}),
        ("row[document[-1]] += 1", {"future"}),
        ("row[all[-1][0]] += 1", {"across"}),
    ],
)
def test_a_leak_is_what_it_depends_on(tmp_path, use, kinds):
    found = leaks(tmp_path / "c", use)
    assert {kind for kind in ("target", "before", "future", "across") if getattr(found, kind)} >= kinds
    if kinds == {"target"}:
        assert (found.before, found.future, found.across) == (None, None, None)
        assert found.target.seen == found.target.flipped
    if kinds == {"across"}:
        assert found.across.seen.row != found.across.flipped.row == 3
        assert (found.target, found.across.flipped) == (None, Place(3, 0))


def test_the_reach_is_the_farthest(tmp_path):
    found = leaks(tmp_path / "c", "row[document[t // 16 * 16 : t // 16 * 16 + 16]] += 1")
    for leak in (found.before, found.future):
        assert 0 < leak.flipped.position - leak.seen.position < 16
        assert leak.seen.position // 16 == leak.flipped.position // 16
