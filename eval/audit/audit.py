"""The audit: somebody's claim executed, coded and decoded, and every condition that a score must meet checked.

The predictor is told only what a decoder has. Its distributions become integer frequencies, these code the text, and a
fresh process without the text decodes it. `honest_bpb` is what came out: coded bits and all side information over the
bytes of the text. A predictor with `peek` is run a second time as its author's script runs it, to say where the claimed
score comes from.
"""

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from codec.console import progress
from eval.audit import conditions
from eval.audit.claims import Claim, load_claim
from eval.audit.coding import Place, Transcript, decode, encode
from eval.audit.conditions import Condition
from eval.audit.probing import Leak, Leaks, probe, rows_apart
from eval.audit.sandbox import Limits, PredictorError, Sandbox

HOLDS, REFUTED = "holds", "refuted"


@dataclass(frozen=True)
class Audit:
    """What an audit found. Bits per byte are None where the predictor did not run to the end.

    Attributes:
        honest_bpb: coded bits, order, lengths and edits over the bytes of the text.
        ideal_bpb: the same with the code length of the integer frequencies in place of the coded bits.
        scored_bpb: what the author's way of scoring gives here: probabilities as they stand, of the documents that
            were scored, with `peek` if there is one, over the bytes as the author counts them.
        isolation: what kept the predictor from "network" and "text".
    """

    name: str
    verdict: str
    claimed_bpb: float
    honest_bpb: float | None
    ideal_bpb: float | None
    scored_bpb: float | None
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
        """The names of the conditions that failed."""
        return [condition.name for condition in self.conditions if not condition.ok]

    def to_json(self) -> dict[str, Any]:
        """Plain values; `verdict`, `claimed_bpb`, `honest_bpb` and `conditions` are stable."""
        return asdict(self)


@dataclass
class _Findings:
    """What the runs of a predictor have shown so far."""

    isolation: dict[str, str]
    honest: Transcript | None = None
    claimed: Transcript | None = None
    mismatch: Place | None = None
    leaks: Leaks | None = None
    mixed: Leak | None = None
    error: str | None = None


def audit(path: str | Path, limits: Limits | None = None) -> Audit:
    """Audit the claim in a folder or `claim.toml`.

    Raises:
        CodecError: the claim cannot be read. A predictor that fails is no error: the condition `runs` says so.
    """
    begin = time.perf_counter()
    claim = load_claim(path)
    found = _Findings({})
    try:
        _run(claim, limits or Limits(), found)
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
        found.mixed = rows_apart(claim, limits)
    found.honest = honest


def _verdict(claim: Claim, found: _Findings, begin: float) -> Audit:
    order_bits, lengths_bits = conditions.order_bits(claim), conditions.lengths_bits(claim)
    edit_bits = conditions.edit_bits(claim)
    extra = order_bits + lengths_bits + edit_bits
    tokens = sum(len(row.targets) for row in claim.rows)
    text_bytes = sum(claim.real_bytes(row) for row in range(len(claim.rows)))
    sizes = {file.name: file.stat().st_size for file in claim.program.files}
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
            conditions.rows_known(claim, found.mixed),
        ]
    lines += [
        conditions.order(claim, order_bits),
        conditions.lengths(claim, lengths_bits, claim.side_bits - order_bits),
        conditions.counted_bytes(claim),
        conditions.text(claim, edit_bits),
        conditions.complete(claim),
        conditions.artifact(sizes),
        conditions.score(claim.claimed_bpb, honest_bpb, text_bytes),
    ]
    return Audit(
        name=claim.name,
        verdict=HOLDS if all(line.ok for line in lines) else REFUTED,
        claimed_bpb=claim.claimed_bpb,
        honest_bpb=honest_bpb,
        ideal_bpb=ideal_bpb,
        scored_bpb=scored,
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


def scored_bpb(claim: Claim, transcript: Transcript) -> float:
    """The score that the author's way of counting makes of a run."""
    rows = [int(row) for row in claim.order[: claim.scored]]
    counted = claim.counted_bytes or sum(claim.real_bytes(row) for row in rows)
    return float(np.sum([transcript.bits[row].sum() for row in rows])) / counted
