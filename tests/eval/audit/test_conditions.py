"""eval.audit.conditions: side information against brute force, and every verdict from what it is given."""

import math
from itertools import permutations, product

import numpy as np
import pytest

from eval.audit import conditions
from eval.audit.coding import Place
from eval.audit.probing import Leak, Leaks
from eval.audit.rows import Row
from tests.support.audit_claims import claim_of
from trainer.data.sample import sp1024


@pytest.mark.parametrize("lengths", [[3, 1, 2], [2, 2, 1, 1], [5, 5, 1, 5], [1, 2, 3, 4, 5]])
def test_order_bits_count_the_orders_that_look_alike(lengths):
    """Brute force: the texts whose longest-first order is the same sequence of documents."""
    order = np.argsort(-np.array(lengths), kind="stable")
    if order.tolist() == sorted(order):
        return
    placed = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    same = 0
    for arrangement in permutations(range(len(lengths))):  # documents in the order of a text
        same += sorted(arrangement, key=lambda i: -lengths[i]) == placed
    assert conditions.order_bits(claim_of(lengths, order)) == pytest.approx(math.log2(same))


def test_order_bits_of_any_other_order():
    assert conditions.order_bits(claim_of([1, 2, 3])) == 0
    assert conditions.order_bits(claim_of([1, 2, 3], [1, 0, 2])) == pytest.approx(math.log2(6))


@pytest.mark.parametrize("lengths", [[3, 1, 2], [0, 4], [1, 1, 2]])
def test_lengths_bits_count_the_ways_to_cut(lengths):
    total = sum(lengths)
    ways = sum(sum(cut) == total for cut in product(range(total + 1), repeat=len(lengths)))
    assert conditions.lengths_bits(claim_of(lengths, ends_coded=False)) == pytest.approx(math.log2(ways))
    assert conditions.lengths_bits(claim_of(lengths)) == 0
    assert conditions.lengths_bits(claim_of([2, 2], ends_coded=False)) == 0


def test_bytes_that_are_not_there_are_named(tmp_path):
    """Every miscount at once, by a table for the challenge's tokenizer."""
    tokenizer = sp1024()
    pieces = tokenizer.token_bytes
    table = [len(p) + (p.startswith(b" ") and len(p) > 1) + 2 * (p == b" ") + 2 * (p[:1] > b"\x7f") for p in pieces]
    text = "the cat  – a café"
    tokens = tokenizer.encode(text.encode())
    claim = claim_of([0], alphabet=tokenizer, byte_table=np.array(table, float), counted_bytes=99.0)
    claim = claim_of(
        [0],
        rows=[Row(1, tokens.astype(np.int64))],
        documents=[tokenizer.decode(tokens)],
        tokens=[tokens.astype(np.int64)],
        row_bytes=np.array([len(tokenizer.decode(tokens))]),
        alphabet=tokenizer,
        byte_table=claim.byte_table,
        counted_bytes=float(np.array(table)[tokens].sum()),
    )
    found = conditions.counted_bytes(claim)
    assert not found.ok
    assert "leading space counted twice" in found.evidence
    assert conditions._miscount(b" ", 2) == "a space counted as the three bytes of ▁"
    assert conditions._miscount(b"\xc3", 2) == "byte fallback counted as three bytes"
    assert conditions._miscount(b"", 1) == "tokens without text counted"
    assert conditions._miscount(b"a", 4) == "tokens counted wrong"


def test_counting_fewer_bytes_than_there_are_harms_only_the_author():
    assert conditions.counted_bytes(claim_of([1000], counted_bytes=990.0)).ok
    assert conditions.counted_bytes(claim_of([100_000], counted_bytes=100_009.0)).ok
    assert not conditions.counted_bytes(claim_of([100_000], counted_bytes=100_011.0)).ok


@pytest.mark.parametrize(
    "raw, kept",
    [
        (b"a\n\nb\tc", b"a b c"),
        ("ﬁne Ⅳ".encode(), b"fine IV"),
        (b" a ", b"a"),
        ("a\u200db".encode(), b"ab"),
        (b"plain", b"plain"),
    ],
)
def test_what_counts_as_canonical(raw, kept):
    assert conditions.canonical(raw) == kept.decode()
    assert conditions.canonical(b"A") != conditions.canonical(b"a")


def test_leaks_become_conditions():
    seen = Leak(Place(0, 3), Place(0, 9))
    own = Leak(Place(0, 9), Place(0, 9))
    none = Leaks(None, None, None, None, 10)
    gate = Leaks(own, None, None, None, 10)
    learned = Leaks(own, seen, seen, None, 10)
    ahead = Leaks(None, seen, seen, None, 10)
    across = Leaks(None, None, None, Leak(Place(0, 3), Place(7, 0)), 10)

    def verdicts(leaks):
        checks = (conditions.future_unseen, conditions.target_unseen, conditions.score_before_update)
        return [check(leaks).ok for check in checks]

    assert verdicts(None) == verdicts(none) == [True, True, True]
    assert verdicts(gate) == [True, False, True]
    assert verdicts(learned) == [False, False, False]
    assert verdicts(ahead) == [False, True, True]
    assert verdicts(across) == [False, True, True]
    assert "up to 6 before it" in conditions.score_before_update(learned).evidence


def test_what_peeking_is_worth_is_said():
    honest = {0: np.array([4.0, 5.0]), 1: np.array([1.0])}
    assert conditions.decodes(None, 3, {0: np.array([4.0, 5.005]), 1: np.array([1.0])}, honest).ok
    found = conditions.decodes(None, 3, {0: np.array([4.0, 2.0]), 1: np.array([1.0])}, honest)
    assert not found.ok
    assert "1 of 3 tokens, first at document 0, token 1; peeking is worth 3 bits" in found.evidence


def test_the_budget():
    assert conditions.artifact({"a": 15_999_999, "b": 1}).ok
    assert not conditions.artifact({"a": 16_000_000, "b": 1}).ok
