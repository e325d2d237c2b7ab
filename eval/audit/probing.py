"""Probe the dependences of a predictor: change text that must not matter, and compare the distributions.

Each run has a process of its own, so that a predictor cannot carry knowledge from one run to the next.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eval.audit.claims import Claim
from eval.audit.coding import LEAST, Place, batches, starts
from eval.audit.predictor import ENDED, Predictor
from eval.audit.sandbox import Limits, Sandbox

ROWS, STEPS, FLIPS = 8, 96, 2
"""Documents, tokens of each document, and tested places in each: enough to see any dependence that improves a score."""

APART = 3
"""Batches of a flat stream that are tested. Use of later rows in a share f of all batches is seen with a chance of
1 - (1 - f)^3."""

CHANGED_BITS = 1e-3
"""Bits by which the code length of some token must change: noise is far below, a useful leak far above."""


@dataclass(frozen=True)
class Leak:
    """A leak: the distribution at `seen` changed when the token at `flipped` was changed."""

    seen: Place
    flipped: Place


@dataclass(frozen=True)
class Leaks:
    """The leaks that were found, each None if the predictor used earlier tokens only.

    Attributes:
        target: changing a token changed the token's own distribution.
        before: changing a token changed an earlier distribution of the same document; the farthest.
        future: changing all tokens from one on changed an earlier distribution; the farthest.
        across: changing a whole document changed a distribution of another document.
        tested: number of distributions compared.
    """

    target: Leak | None
    before: Leak | None
    future: Leak | None
    across: Leak | None
    tested: int


def probe(claim: Claim, limits: Limits) -> Leaks:
    """Test a predictor with `peek` on the first rows of the claim. Raises PredictorError."""
    rows = [int(row) for row in claim.order[: min(ROWS, claim.batch)]]
    text = [claim.rows[row].targets[:STEPS] for row in rows]
    longest = max(map(len, text))
    generator = np.random.default_rng(0)
    places = sorted(generator.choice(np.arange(min(1, longest - 1), longest), min(FLIPS, longest), replace=False))
    base = _said(claim, limits, rows, text, text, int(places[-1]) + 1)
    found: dict[str, Leak | None] = {"target": None, "before": None, "future": None, "across": None}
    tested = 0

    def compare(shown: Sequence[NDArray[np.int64]], until: int) -> list[tuple[int, int]]:
        """List (index of the row, position) of the distributions up to `until` that change after `peek(shown)`."""
        nonlocal tested
        said = _said(claim, limits, rows, text, shown, until + 1)
        changed = np.abs(_bits(said) - _bits(base[: until + 1])).max(-1) > CHANGED_BITS
        places = [(n, t) for t, n in np.argwhere(changed) if t < len(text[n])]
        tested += changed.size
        return places

    def note(kind: str, place: tuple[int, int], flipped: tuple[int, int]) -> None:
        leak = Leak(Place(rows[place[0]], place[1]), Place(rows[flipped[0]], flipped[1]))
        known = found[kind]
        if known is None or _reach(leak) > _reach(known):
            found[kind] = leak

    for place in map(int, places):
        for n, t in compare([_flip(row, place, place + 1, claim, generator) for row in text], place):
            if place < len(text[n]):
                note("target" if t == place else "before", (n, t), (n, place))
        for n, t in compare([_flip(row, place, len(row), claim, generator) for row in text], place):
            if t < place < len(text[n]):
                note("future", (n, t), (n, place))
    last = len(text) - 1
    if last:
        shown = [*text[:last], _flip(text[last], 0, len(text[last]), claim, generator)]
        for n, t in compare(shown, int(places[-1])):
            if n != last:
                note("across", (n, t), (last, 0))
    return Leaks(**found, tested=tested)


@dataclass(frozen=True)
class Apart:
    """The test of rows against later rows of their batch, in `tested` of the `batches` that have several rows."""

    leak: Leak | None
    tested: int
    batches: int


def rows_apart(claim: Claim, limits: Limits) -> Apart:
    """Test that rows of a flat stream do not depend on later rows of the batch: decoding row by row, those are unknown.

    In batches chosen at random, the rows from a random row on are replaced by another text, over their whole length.
    The distributions of the earlier rows are compared with those beside the original text.

    Raises:
        PredictorError: the predictor did not answer.
    """
    groups = list(batches(claim))
    several = [n for n, group in enumerate(groups) if len(group) > 1]
    generator = np.random.default_rng()
    chosen: list[int] = generator.permutation(np.array(several, np.int64))[:APART].tolist()
    vocabulary = claim.alphabet.vocab_size
    for last in sorted(chosen):
        first = int(generator.integers(1, len(groups[last])))
        with (
            Sandbox(claim.program, vocabulary, limits) as plain,
            Sandbox(claim.program, vocabulary, limits) as changed,
        ):
            leak = _first_change(claim, (plain, changed), groups[: last + 1], first, generator)
        if leak:
            return Apart(leak, len(chosen), len(several))
    return Apart(None, len(chosen), len(several))


def _first_change(
    claim: Claim,
    pair: tuple[Predictor, Predictor],
    groups: Sequence[NDArray[np.int64]],
    first: int,
    generator: np.random.Generator,
) -> Leak | None:
    """Run two predictors over the batches `groups`; the second gets another text in the last batch from row `first` on.

    Args:
        claim: the text.
        pair: the two predictors.
        groups: numbers of the rows of each batch.
        first: the first row of the last batch that is changed.
        generator: chooses the other text.

    Returns:
        The first difference between their distributions of the rows before `first`.
    """
    for rows in groups:
        begin, text = starts(claim, rows), [claim.rows[row].targets for row in rows]
        other, other_begin = text, begin
        if rows is groups[-1]:
            other = [*text[:first], *(_flip(row, 0, len(row), claim, generator) for row in text[first:])]
            other_begin = np.concatenate([begin[:first], _flip(begin[first:], 0, len(rows), claim, generator)])
        pair[0].reset(begin)
        pair[1].reset(other_begin)
        for position in range(len(text[0])):  # rows of a flat stream have the same length
            said = [_bits(predictor.distribution()) for predictor in pair]
            moved = np.abs(said[0] - said[1]).max(-1)[:first] > CHANGED_BITS
            if rows is groups[-1] and moved.any():
                return Leak(Place(int(rows[moved.argmax()]), position), Place(int(rows[first]), 0))
            for predictor, its in zip(pair, (text, other), strict=True):
                predictor.update(np.array([row[position] for row in its], np.int64))
    return None


def _said(
    claim: Claim,
    limits: Limits,
    rows: Sequence[int],
    text: Sequence[NDArray[np.int64]],
    shown: Sequence[NDArray[np.int64]] | None,
    steps: int,
    begin: NDArray[np.int64] | None = None,
) -> NDArray[np.float64]:
    """Collect the distributions [steps, B, V] of a fresh process that is told `text` after `peek(shown)`."""
    steps = min(steps, max(map(len, text)))
    with Sandbox(claim.program, claim.alphabet.vocab_size, limits) as sandbox:
        sandbox.reset(starts(claim, rows) if begin is None else begin)
        if shown is not None:
            sandbox.peek(shown)
        said = []
        for step in range(steps):
            said.append(sandbox.distribution())
            sandbox.update(np.array([row[step] if step < len(row) else ENDED for row in text], np.int64))
    return np.array(said)


def _flip(
    row: NDArray[np.int64], begin: int, end: int, claim: Claim, generator: np.random.Generator
) -> NDArray[np.int64]:
    """Replace every token of [begin, end) in `row` by another token of the text."""
    used = np.unique(np.concatenate([r.targets for r in claim.rows[:64]]))
    flipped = row.copy()
    for i in range(begin, min(end, len(row))):
        others = used[used != row[i]]
        flipped[i] = generator.choice(others) if len(others) else (row[i] + 1) % claim.alphabet.vocab_size
    return flipped


def _bits(p: NDArray[np.floating]) -> NDArray[np.float64]:
    return np.log2(np.nan_to_num(p, nan=LEAST, posinf=1 / LEAST, neginf=LEAST).clip(LEAST, 1 / LEAST))


def _reach(leak: Leak) -> int:
    return leak.flipped.position - leak.seen.position
