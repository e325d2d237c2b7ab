"""codec.text.shares: all documents are shared out, to encode in equal sums, to decode by length and in equal times."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from codec.text.coder import FEWEST_SLOTS, MOST_SLOTS
from codec.text.shares import equal_shares, shares_to_decode


@given(st.lists(st.integers(0, 50), max_size=12), st.integers(1, 5))
def test_equal_shares_are_about_the_same(sizes, count):
    parts = equal_shares(sizes, count)
    assert sorted(i for part in parts for i in part) == list(range(len(sizes)))
    assert len(parts) == min(count, len(sizes))
    assert all(parts)
    loads = [sum(sizes[i] + 1 for i in part) for part in parts]
    for part, load in zip(parts, loads, strict=True):
        assert [sizes[i] for i in part] == sorted((sizes[i] for i in part), reverse=True)
        assert load - (sizes[part[-1]] + 1) <= min(loads)  # whoever took a document had the least


def cost(sizes: list[int], share: list[int], kind: str) -> int:
    """Steps times what a step costs beside its slots, and the slots."""
    total = sum(sizes[i] + 1 for i in share)
    return FEWEST_SLOTS[kind] * max(max(sizes[i] + 1 for i in share), total // MOST_SLOTS[kind]) + total


@given(st.lists(st.integers(0, 5000), max_size=12), st.integers(1, 5), st.sampled_from(["cpu", "cuda"]))
def test_shares_to_decode_are_bands_of_length(sizes, count, kind):
    shares = shares_to_decode(sizes, count, kind)
    assert sorted(i for share in shares for i in share) == list(range(len(sizes)))
    assert len(shares) <= count and all(shares)
    lengths = [[sizes[i] for i in share] for share in shares]
    assert all(min(a) >= max(b) for a, b in pairwise(lengths))
    if len(sizes) > 1 and count == 2:  # no other cut is shorter
        order = sorted(range(len(sizes)), key=lambda i: -sizes[i])
        cuts = [[order[:n], order[n:]] for n in range(1, len(sizes))] + [[order]]
        best = min(max(cost(sizes, share, kind) for share in cut) for cut in cuts)
        assert max(cost(sizes, share, kind) for share in shares) <= best + 8


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_bands_are_shorter_than_equal_sums(kind):
    sizes = np.random.default_rng(0).lognormal(6.5, 1, 12_000).clip(20, 3000).astype(int).tolist()
    longest = [
        max(cost(sizes, s, kind) for s in shares)
        for shares in (shares_to_decode(sizes, 4, kind), equal_shares(sizes, 4))
    ]
    assert longest[0] < longest[1] * (0.8 if kind == "cuda" else 1)
