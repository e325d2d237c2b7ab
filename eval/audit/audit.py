"""Audit a claim: run its predictor, code and decode the text, and check every condition that a score must meet.

The predictor is told only what a decoder knows. Its distributions become integer frequencies, which code the text, and
a fresh process without the text decodes it. `honest_bpb` is the result: coded bits and all side information over the
bytes of the text. A predictor with `peek` runs a second time as its author's script runs it, to show how the claimed
score arises.
"""

import filecmp
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from codec.console import progress
from eval.audit import conditions
from eval.audit.claims import Claim, load_claim, on_text, shown_files
from eval.audit.coding import Place, Transcript, decode, encode
from eval.audit.conditions import Condition, Fresh
from eval.audit.probing import Apart, Leaks, probe, rows_apart
from eval.audit.sandbox import Limits, PredictorError, Sandbox

HOLDS, AS_FAR, REFUTED = "holds", "holds as far as checked", "refuted"
"""Verdicts: every condition is met; no condition is broken but some could not be checked; a condition is broken."""

MARGIN = 0.05
"""Bits per byte that a fresh text may score above the claim's text by default. Five parts of 500 kB of the challenge's
validation text have 2.70 to 2.82 bits per byte under xz -6, a standard deviation of 0.04.
"""


@dataclass(frozen=True)
class Audit:
    """The result of an audit. Bits per byte are None if the predictor did not run to the end.

    Attributes:
        honest_bpb: coded bits, order, lengths and edits over the bytes of the text.
        ideal_bpb: as `honest_bpb`, with the ideal code length in place of the coded bits.
        scored_bpb: the score by the author's own way: unnormalised probabilities of the scored documents, with `peek`
            if the predictor has it, over the bytes as the author counts them.
        fresh_bpb: the score of a fresh text; None if the auditor gave none.
        isolation: the means that kept the predictor from "network" and "text"; "reason" tells why the kernel did not,
            if Python alone did.
    """

    name: str
    verdict: str
    claimed_bpb: float
    honest_bpb: float | None
    ideal_bpb: float | None
    scored_bpb: float | None
    fresh_bpb: float | None
    conditions: list[Condition]
    tokens: int
    text_bytes: int
    coded_bytes: int
    side_bits: float
    edit_bits: float
    artifact_bytes: int
    isolation: dict[str, str]
    seconds: float

    @property
    def failed(self) -> list[str]:
        """Return the names of the conditions that failed."""
        return [condition.name for condition in self.conditions if condition.ok is False]

    @property
    def unchecked(self) -> list[str]:
        """Return the names of the conditions that could not be checked."""
        return [condition.name for condition in self.conditions if condition.ok is None]

    def to_json(self) -> dict[str, Any]:
        """Return plain values; `verdict`, `claimed_bpb`, `honest_bpb` and `conditions` are stable."""
        return asdict(self)


@dataclass
class _Findings:
    """The results of a predictor's runs so far."""

    isolation: dict[str, str]
    honest: Transcript | None = None
    claimed: Transcript | None = None
    mismatch: Place | None = None
    leaks: Leaks | None = None
    apart: Apart | None = None
    fresh: Fresh | None = None
    error: str | None = None


def audit(path: str | Path, limits: Limits | None = None, fresh: Path | None = None, margin: float = MARGIN) -> Audit:
    """Audit the claim in a folder or `claim.toml`.

    Args:
        path: the folder or the `claim.toml`.
        limits: time and memory that the predictor may use.
        fresh: a text of the same source that the claim's author has not seen.
        margin: bits per byte that the fresh text may score above the claim's text.

    Raises:
        CodecError: the claim or the fresh text cannot be read. A predictor that fails raises nothing; then the
            condition `runs` fails.
    """
    begin = time.perf_counter()
    claim = load_claim(path)
    other = on_text(claim, fresh) if fresh else None
    found = _Findings({})
    try:
        _run(claim, limits or Limits(), found)
        if other:
            found.fresh = _score_fresh(other, limits or Limits(), margin)
    except PredictorError as error:
        found.error = str(error)
    return _verdict(claim, found, begin)


def _run(claim: Claim, limits: Limits, found: _Findings) -> None:
    tokens = sum(len(row.targets) for row in claim.rows)
    vocabulary = claim.alphabet.vocab_size
    with progress("coding", tokens, "token") as advance, Sandbox(claim.program, vocabulary, limits) as sandbox:
        found.isolation, peeks = sandbox.isolation, sandbox.peeks
        honest = encode(sandbox, claim, advance)
    with progress("decoding", tokens, "token") as advance, Sandbox(claim.program, vocabulary, limits) as sandbox:
        found.mismatch = decode(sandbox, claim, honest.stream, advance)
    if peeks:
        with (
            progress("as its author", tokens, "token") as advance,
            Sandbox(claim.program, vocabulary, limits) as sandbox,
        ):
            found.claimed = encode(sandbox, claim, advance, peek=True)
        found.leaks = probe(claim, limits)
    if claim.flat and claim.batch > 1:
        found.apart = rows_apart(claim, limits)
    found.honest = honest


def _score_fresh(claim: Claim, limits: Limits, margin: float) -> Fresh:
    tokens = sum(len(row.targets) for row in claim.rows)
    vocabulary = claim.alphabet.vocab_size
    with progress("fresh text", tokens, "token") as advance, Sandbox(claim.program, vocabulary, limits) as sandbox:
        coded = encode(sandbox, claim, advance)
    bits = 8 * len(coded.stream) + conditions.lengths_bits(claim) + conditions.edit_bits(claim)
    return Fresh(bits / claim.text_bytes, claim.text_bytes, margin)


def _verdict(claim: Claim, found: _Findings, begin: float) -> Audit:
    order_bits, lengths_bits = conditions.order_bits(claim), conditions.lengths_bits(claim)
    edit_bits = conditions.edit_bits(claim)
    extra = order_bits + lengths_bits + edit_bits
    tokens = sum(len(row.targets) for row in claim.rows)
    text_bytes = claim.text_bytes
    sizes = _sizes(claim)
    carried = sum(sizes.values()) + claim.tokenizer_bytes
    shown = claim.documents or (row.targets.tobytes() for row in claim.rows)
    honest_bpb = ideal_bpb = scored = None
    lines = [conditions.runs(found.isolation, found.error)]
    if honest := found.honest:
        honest_bpb = (8 * len(honest.stream) + extra) / text_bytes
        ideal_bpb = (honest.ideal_bits + extra) / text_bytes
        scored = scored_bpb(claim, found.claimed or honest)
        lines += [
            conditions.normalised([run.mass for run in (found.claimed, honest) if run]),
            conditions.future_unseen(found.leaks),
            conditions.target_unseen(found.leaks),
            conditions.score_before_update(found.leaks),
            conditions.decodes(found.mismatch, tokens, found.claimed.bits if found.claimed else None, honest.bits),
            conditions.rows_known(claim, found.apart),
        ]
    lines += [
        conditions.order(claim, order_bits),
        conditions.lengths(claim, lengths_bits, claim.side_bits - order_bits),
        conditions.counted_bytes(claim),
        conditions.text(claim, edit_bits),
        conditions.complete(claim),
        conditions.artifact(sizes),
        conditions.memorised(_copies(claim), carried, conditions.xz_bytes(shown, carried), honest_bpb, found.fresh),
        conditions.score(claim.claimed_bpb, honest_bpb, text_bytes),
    ]
    return Audit(
        name=claim.name,
        verdict=_word(lines),
        claimed_bpb=claim.claimed_bpb,
        honest_bpb=honest_bpb,
        ideal_bpb=ideal_bpb,
        scored_bpb=scored,
        fresh_bpb=found.fresh.bpb if found.fresh else None,
        conditions=lines,
        tokens=tokens,
        text_bytes=text_bytes,
        coded_bytes=len(honest.stream) if honest else 0,
        side_bits=order_bits + lengths_bits,
        edit_bits=edit_bits,
        artifact_bytes=sum(sizes.values()),
        isolation=found.isolation,
        seconds=time.perf_counter() - begin,
    )


def _sizes(claim: Claim) -> dict[str, int]:
    """Count what a claim brings: bytes of each file and of its name, and of the factory's name."""
    sizes = {file.name: file.stat().st_size + len(file.name.encode()) for file in claim.program.files}
    return {**sizes, "factory": len(claim.program.factory.encode())}


def _copies(claim: Claim) -> list[str]:
    """Return the names of a claim's files that are a file of the text, byte for byte."""
    texts = [text for path in claim.program.hidden for text in shown_files(path) if text.stat().st_size]
    return [file.name for file in claim.program.files if any(filecmp.cmp(file, text, shallow=False) for text in texts)]


def _word(lines: Sequence[Condition]) -> str:
    """Return the verdict that follows from the conditions."""
    if any(line.ok is False for line in lines):
        return REFUTED
    return AS_FAR if any(line.ok is None for line in lines) else HOLDS


def scored_bpb(claim: Claim, transcript: Transcript) -> float:
    """Score a run by the author's way of counting, in bits per byte."""
    rows = [int(row) for row in claim.order[: claim.scored]]
    counted = claim.counted_bytes or sum(claim.real_bytes(row) for row in rows)
    return float(np.sum([transcript.bits[row].sum() for row in rows])) / counted
