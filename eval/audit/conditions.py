"""Check the conditions that a score must meet, each by a pure function from the audit's measurements to a verdict.

The first four make a number a code length (issue #1017 of the challenge calls them C1 to C4). The others concern the
text, the bytes and the side information that were counted.
"""

import lzma
import math
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from codec.edits import coder as patch
from codec.entropy import range_coder
from eval.audit.claims import Claim
from eval.audit.coding import Mass, Place
from eval.audit.isolation import ROOT
from eval.audit.probing import Apart, Leak, Leaks

CAP = 16_000_000
"""The challenge's limit for code and model, in bytes."""

BYTES_TOLERANCE = 1e-4
"""The relative error of the denominator that is tolerated, as normalisation and a dropped tail cause; 0.0001 bpb at 1
bpb."""

SCORE_TOLERANCE, SCORE_BITS = 5e-4, 64
"""Bits per byte, and bits in all, by which the claim may be below the coded score: a fifth of the challenge's margin
for a record, and the end of the coded stream."""

DIFFERENT_BITS = 0.01
"""Bits by which a token's claimed code length may differ from the decoder's: float32 noise of a parallel pass."""


@dataclass(frozen=True)
class Condition:
    """One line of a verdict; `ok` is None if the condition could not be checked."""

    name: str
    ok: bool | None
    evidence: str


def runs(isolation: Mapping[str, str], error: str | None) -> Condition:
    """Check that the predictor answered within its limits, in a process that could not reach the text."""
    kept = f"kept from the network by {isolation['network']}, from the text by {isolation['text']}" if isolation else ""
    if error is not None:
        return Condition("runs", False, f"{error}; {kept}".rstrip("; "))
    if isolation.get("text") == ROOT:
        return Condition("runs", True, kept)
    why = isolation.get("reason", "no reason given")
    return Condition(
        "runs", None, f"{kept}: native code could have read the text, as this machine cannot isolate ({why})"
    )


def normalised(masses: Sequence[Mass]) -> Condition:
    """Check that every distribution sums to 1 over the whole vocabulary."""
    bad = next((mass for mass in masses if mass.first), None)
    if bad is None or bad.first is None:
        worst = max(mass.worst for mass in masses)
        return Condition("normalised", True, f"no sum is farther from 1 than {worst:.1e}")
    return Condition(
        "normalised",
        False,
        f"{bad.exceeded:,} of {bad.tokens:,} distributions do not sum to 1; the first is {bad.first_sum:.6g} at "
        f"{place(bad.first)}, the worst is off by {bad.worst:.6g}",
    )


def future_unseen(leaks: Leaks | None) -> Condition:
    """Check that later tokens do not change the distribution of a token."""
    if leaks is None:
        return Condition("future_unseen", True, "it was never shown a later token")
    leak = leaks.future or leaks.across
    if leak is None:
        return Condition("future_unseen", True, f"{leaks.tested:,} distributions stayed when later text was changed")
    wide = leaks.across is not None
    scope = "even when only another document was changed" if wide else f"the change began at token {at(leak)}"
    return Condition("future_unseen", False, f"the distribution at {place(leak.seen)} depends on what follows: {scope}")


def target_unseen(leaks: Leaks | None) -> Condition:
    """Check that a distribution does not depend on the token that it scores."""
    if leaks is None or leaks.target is None:
        return Condition("target_unseen", True, "no distribution changed with the token that it scores")
    return Condition(
        "target_unseen",
        False,
        f"the distribution at {place(leaks.target.seen)} changes when only the token that it scores is changed",
    )


def score_before_update(leaks: Leaks | None) -> Condition:
    """Check that each token is scored before the predictor learns from the token.

    Learning from a token too early changes both the token's own distribution and earlier distributions.
    """
    if leaks is None or leaks.before is None or leaks.target is None:
        return Condition("score_before_update", True, "nothing was learned from a token before it was scored")
    reach = leaks.before.flipped.position - leaks.before.seen.position
    return Condition(
        "score_before_update",
        False,
        f"token {at(leaks.before)} of document {leaks.before.seen.row} is learned from before it is scored: changing "
        f"it changes its own distribution and those of tokens up to {reach} before it",
    )


def decodes(
    mismatch: Place | None,
    tokens: int,
    claimed: Mapping[int, NDArray[np.float64]] | None,
    honest: Mapping[int, NDArray[np.float64]],
) -> Condition:
    """Check that a fresh process restores every token from the coded bits, with the distributions of the claim.

    Args:
        mismatch: the first token that did not decode to itself.
        tokens: the number of tokens.
        claimed: -log2 of each token's probability with `peek`, by row; None for a predictor without `peek`.
        honest: -log2 of each token's probability without `peek`, by row.
    """
    if mismatch:
        return Condition("decodes", False, f"decoding goes wrong at {place(mismatch)}: it does not say the same twice")
    if claimed is not None:
        different = [(row, np.flatnonzero(np.abs(claimed[row] - honest[row]) > DIFFERENT_BITS)) for row in claimed]
        count = sum(len(positions) for _, positions in different)
        if count:
            row, positions = next((row, positions) for row, positions in different if len(positions))
            gain = sum(float((honest[row] - claimed[row]).sum()) for row in claimed)
            return Condition(
                "decodes",
                False,
                f"a decoder, which cannot peek, gets other distributions at {count:,} of {tokens:,} tokens, first at "
                f"{place(Place(row, int(positions[0])))}; peeking is worth {gain:,.0f} bits",
            )
    return Condition("decodes", True, f"a fresh process restored all {tokens:,} tokens from the coded bits alone")


def rows_known(claim: Claim, apart: Apart | None) -> Condition:
    """Check for a flat stream that the token before a row is known: rows can be decoded one after another."""
    if not claim.flat:
        return Condition("context", True, "each document begins with BOS")
    if (claim.order != np.arange(len(claim.order))).any():
        return Condition("context", False, "in this order the token before a row is not known when the row is decoded")
    if apart is None:
        return Condition("context", True, "one row at a time: each begins with the last token of the one before")
    if leak := apart.leak:
        return Condition(
            "context",
            False,
            f"row {leak.seen.row} changes with later rows of its batch, first at token {leak.seen.position}, so rows "
            "cannot be decoded one after another; use batch = 1",
        )
    many = f"in {apart.tested} of {apart.batches} batches, chosen at random, all along their rows"
    return Condition("context", True, f"rows do not see later rows ({many}): each begins with the last token before")


def order_bits(claim: Claim) -> float:
    """Count the bits that tell a decoder how to put the documents back into the order of the text.

    Any order costs log2 n! bits. In an order by length, documents of equal length keep their order at no cost.
    """
    n = len(claim.order)
    if (claim.order == np.arange(n)).all():
        return 0.0
    bits = math.lgamma(n + 1) / math.log(2)
    lengths = np.array([len(row.targets) for row in claim.rows])
    for sign in (-1, 1):
        if (claim.order == np.argsort(sign * lengths, kind="stable")).all():
            bits -= sum(math.lgamma(count + 1) for count in Counter(lengths.tolist()).values()) / math.log(2)
            break
    return bits


def lengths_bits(claim: Claim) -> float:
    """Count the bits that tell a decoder where documents end: log2 of the number of ways to cut the tokens."""
    lengths = [len(row.targets) for row in claim.rows]
    if claim.ends_coded or claim.flat or len(set(lengths)) == 1:
        return 0.0
    total, n = sum(lengths), len(lengths)
    return (math.lgamma(total + n) - math.lgamma(n) - math.lgamma(total + 1)) / math.log(2)


def order(claim: Claim, bits: float) -> Condition:
    """Check that the order of scoring needs no side information, or that the claim charges the side information."""
    if not bits:
        return Condition("order", True, "scored in the order of the text")
    what = f"{len(claim.order)} documents in another order than the text's: restoring it takes {bits:,.1f} bits"
    return Condition("order", claim.side_bits >= bits, f"{what}; the claim charges {claim.side_bits:,.1f}")


def lengths(claim: Claim, bits: float, charged: float) -> Condition:
    """Check that the ends of documents are coded or charged; `charged` is the bits that the claim has left for them."""
    if not bits:
        how = "the ends are coded" if claim.ends_coded else "all rows have the same length"
        return Condition("lengths", True, how)
    what = f"a decoder must be told where {len(claim.rows)} documents end: {bits:,.1f} bits"
    return Condition("lengths", charged >= bits, f"{what}; the claim charges {max(0.0, charged):,.1f}")


def counted_bytes(claim: Claim) -> Condition:
    """Check that the claim divides by no more bytes than the text has."""
    rows = claim.order[: claim.scored]
    real = sum(claim.real_bytes(int(row)) for row in rows)
    ok = True if claim.original else None
    source = "counted here on the text" if ok else "as the claim's tokenizer counts tokens: no text is given to count"
    if claim.counted_bytes is None:
        return Condition("bytes", ok, f"{real:,} bytes, {source}")
    wrong = (claim.counted_bytes - real) / real if real else math.inf
    summary = f"{claim.counted_bytes:,.0f} counted, {real:,} there ({source})"
    if wrong <= BYTES_TOLERANCE:
        return Condition("bytes", ok, summary)
    inflated = "no table says why" if claim.byte_table is None else "tokens stand for more bytes than the text has"
    return Condition("bytes", False, f"{summary}: {100 * wrong:+.2f} %; {_miscounts(claim) or inflated}")


def _miscounts(claim: Claim) -> str:
    """Describe the errors in a claim's table of bytes, with the bytes of the text that each error adds."""
    if claim.byte_table is None:
        return ""
    too_many: Counter[str] = Counter()
    for row in claim.order[: claim.scored]:
        for token in claim.rows[row].targets.tolist():
            excess = float(claim.byte_table[token]) - float(claim.alphabet.token_lengths[token])
            if excess:
                too_many[_miscount(claim.alphabet.token_bytes[token], excess)] += round(excess)
    return "; ".join(f"{what}: {count:+,} bytes" for what, count in too_many.most_common())


def _miscount(piece: bytes, excess: float) -> str:
    if len(piece) == 1 and piece[0] >= 0x80 and excess == 2:
        return "byte fallback counted as three bytes"
    if piece.startswith(b" ") and excess == 1:
        return "leading space counted twice"
    if piece.startswith(b" ") and excess == 2:
        return "a space counted as the three bytes of ▁"
    return "tokens without text counted" if not piece else "tokens counted wrong"


def canonical(text: bytes) -> str:
    """Normalise text as the challenge's tokenizers do: NFKC, whitespace runs as one space, no controls. Case stays."""
    folded = unicodedata.normalize("NFKC", text.decode("utf-8", errors="replace"))
    visible = "".join(c for c in folded if c.isspace() or unicodedata.category(c) not in ("Cc", "Cf"))
    return " ".join(visible.split())


def edit_bits(claim: Claim) -> float:
    """Count the bits of edits from the tokens' text to the text; 0 if the tokens keep the canonical text."""
    if claim.documents is None or all(_kept(claim, n) for n in range(len(claim.documents))):
        return 0.0
    decoded = np.frombuffer(b"\n".join(claim.decoded(n) for n in range(len(claim.documents))), np.uint8)
    original = np.frombuffer(b"\n".join(claim.documents), np.uint8)
    edits = patch.align(decoded, original)
    state, out = range_coder.new_encoder(), np.zeros(patch.edits_capacity(decoded, edits), np.uint8)
    patch.put_edits(state, out, decoded, original, edits, lossy=True)
    return 8.0 * range_coder.finish(state, out)


def _kept(claim: Claim, n: int) -> bool:
    assert claim.documents is not None
    decoded = claim.decoded(n)
    return decoded == claim.documents[n] or canonical(decoded) == canonical(claim.documents[n])


def text(claim: Claim, bits: float) -> Condition:
    """Check that the tokens give the text back, raw or at least canonical; `bits` are the missing edits."""
    if claim.documents is None or not claim.original:
        return Condition("text", None, "only token shards are given: whether they are the text cannot be checked")
    lost = [n for n in range(len(claim.documents)) if not _kept(claim, n)]
    if not lost:
        raw = sum(claim.decoded(n) == document for n, document in enumerate(claim.documents))
        others = "" if raw == len(claim.documents) else ", the others in canonical form"
        return Condition("text", True, f"{raw} of {len(claim.documents)} documents come back to the byte{others}")
    one = claim.documents[lost[0]]
    case = canonical(claim.decoded(lost[0])).casefold() == canonical(one).casefold()
    return Condition(
        "text",
        False,
        f"{len(lost)} of {len(claim.documents)} documents cannot be had back, first document {lost[0]}"
        f"{': case is lost' if case else ''}; the missing edits take {bits:,.0f} bits",
    )


def complete(claim: Claim) -> Condition:
    """Check that the whole set was scored."""
    everything, what = len(claim.rows), "rows" if claim.flat else "documents"
    held = sum(len(row.targets) for row in claim.rows)
    part = f" of a part of the file ({claim.part})" if claim.part else ""
    if claim.left_out > BYTES_TOLERANCE * held:
        return Condition(
            "complete",
            False,
            f"{claim.left_out:,} of {claim.left_out + held:,} tokens fill no row of {claim.layout.window} and were not "
            f"scored; targets = {held} would state so",
        )
    if claim.scored == everything:
        return Condition("complete", True, f"all {everything} {what}{part}")
    tokens = sum(len(claim.rows[row].targets) for row in claim.order[: claim.scored])
    return Condition(
        "complete",
        False,
        f"{claim.scored} of {everything} {what} were scored, {100 * tokens / held:.1f} % of the tokens",
    )


def artifact(sizes: Mapping[str, int]) -> Condition:
    """Check that code and model fit the challenge's limit; `sizes` are bytes by name of file, names included."""
    total = sum(sizes.values())
    parts = ", ".join(f"{name} {size:,}" for name, size in sizes.items())
    return Condition("artifact", total <= CAP, f"{total:,} bytes of {CAP:,} ({parts})")


@dataclass(frozen=True)
class Fresh:
    """A predictor's score of a text that its author has not seen, and the margin above the claim, in bits per byte."""

    bpb: float
    text_bytes: int
    margin: float


def memorised(
    copies: Sequence[str], carried: int, compressed: int | None, honest: float | None, fresh: Fresh | None
) -> Condition:
    """Check that the claim's files do not hold the text.

    Args:
        copies: names of files that are the text, byte for byte.
        carried: bytes of code, model and tokenizer.
        compressed: bytes of the text under xz; None if more than `carried`.
        honest: bits per byte of the claim's text.
        fresh: the score of a fresh text.
    """
    held = f"{carried:,} bytes of code, model and tokenizer"
    if copies:
        return Condition("memorised", False, f"{', '.join(copies)} among the claim's files is the scored text itself")
    if fresh is not None and honest is not None:
        worse = fresh.bpb - honest
        said = f"a fresh text of {fresh.text_bytes:,} bytes scores {fresh.bpb:.4f}, {worse:+.4f}"
        limit = fresh.margin + SCORE_BITS / fresh.text_bytes
        return Condition("memorised", worse <= limit, f"{said}; the auditor allows {fresh.margin:+.4f}; {held}")
    if compressed is None:
        return Condition("memorised", True, f"{held} are fewer than the text has under xz")
    return Condition(
        "memorised",
        None,
        f"{held} could hold the text, which has {compressed:,} under xz; a fresh text of the same source would tell",
    )


def xz_bytes(documents: Iterable[bytes], most: int) -> int | None:
    """Count the bytes of documents under xz; None if more than `most`."""
    packer, size = lzma.LZMACompressor(preset=6), 0
    for document in documents:
        size += len(packer.compress(document + b"\n"))
        if size > most:
            return None
    size += len(packer.flush())
    return size if size <= most else None


def score(claimed: float, honest: float | None, text_bytes: int) -> Condition:
    """Check that the claim is not below the coded score."""
    if honest is None:
        return Condition("score", False, "nothing was coded")
    allowed = SCORE_TOLERANCE + SCORE_BITS / text_bytes
    return Condition(
        "score",
        claimed >= honest - allowed,
        f"claimed {claimed:.6f}, coded {honest:.6f}, difference {honest - claimed:+.6f}",
    )


def place(where: Place) -> str:
    """Describe a place in words."""
    return f"document {where.row}, token {where.position}"


def at(leak: Leak) -> int:
    """Return the position of the token that was changed."""
    return leak.flipped.position
