"""Code text with the distributions of a claim's predictor, and decode the text with a predictor told only that stream.

Rows run side by side in batches, one token of each row at a time, in one range-coded stream. Encoder and decoder make
the same calls in the same order, so a deterministic predictor gives both the same distributions, in whatever order it
adds floating-point numbers.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray

from codec.console import Advance, ignore_progress
from codec.entropy import frequencies, range_coder
from codec.model.tokenizer import BOS
from codec.numerics.tables import LEVELS_PER_BIT
from eval.audit.claims import Claim
from eval.audit.predictor import ENDED, Predictor

LEAST = 2.0**-40
"""The least probability: smaller probabilities are raised to this value. The least frequency stands for 2^-24."""

NORMALISED = 1e-4
"""The largest distance of a sum of probabilities from 1: 0.00014 bits a token, a fiftieth of a record's margin."""


@dataclass(frozen=True)
class Place:
    """A token's place: its row in the order of the text, and its position in the row."""

    row: int
    position: int


@dataclass
class Mass:
    """Statistics of the sums of distributions."""

    worst: float = 0.0  # the largest |sum - 1|; infinite if a probability is negative or not a number
    first: Place | None = None  # the first place where |sum - 1| exceeded NORMALISED
    first_sum: float = 1.0
    exceeded: int = 0
    tokens: int = 0

    def see(self, row: int, position: int, p: NDArray[np.floating]) -> None:
        """Add a distribution [V] to the statistics."""
        valid = bool(np.isfinite(p).all() and (p >= 0).all())
        total = float(p.sum()) if valid else float("nan")
        deviation = abs(total - 1) if valid else float("inf")
        self.tokens += 1
        self.worst = max(self.worst, deviation)
        if deviation > NORMALISED:
            self.exceeded += 1
            if self.first is None:
                self.first, self.first_sum = Place(row, position), total


@dataclass
class Transcript:
    """The result of a run over all rows.

    `bits` holds -log2 of each token's probability, not normalised: the score of a script that never looks at the
    probabilities of other tokens. float64 [T] by row.
    """

    bits: dict[int, NDArray[np.float64]]
    mass: Mass = field(default_factory=Mass)
    stream: bytes = b""
    ideal_bits: float = 0.0


def levels(p: NDArray[np.floating]) -> torch.Tensor:
    """Convert probabilities [N, V] to the levels that `codec.entropy.frequencies` takes, int64 [N, V].

    The probabilities need not sum to 1.
    """
    clean = np.nan_to_num(p, nan=LEAST, posinf=1 / LEAST, neginf=LEAST).clip(LEAST, 1 / LEAST)
    return torch.from_numpy(np.rint(np.log2(clean) * LEVELS_PER_BIT).astype(np.int64))


def batches(claim: Claim) -> Iterator[NDArray[np.int64]]:
    """Cut rows into batches that run side by side, in the order of the claim."""
    for at in range(0, len(claim.order), claim.batch):
        yield claim.order[at : at + claim.batch]


def starts(claim: Claim, rows: Sequence[int] | NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the tokens before rows, which a decoder knows, int64 [B]."""
    return np.array([claim.rows[row].start for row in rows], np.int64)


@runtime_checkable
class Peeker(Predictor, Protocol):
    """A predictor with `peek`: its author's script shows the text."""

    def peek(self, documents: Sequence[NDArray[np.int64]]) -> None: ...


def encode(
    predictor: Predictor | Peeker, claim: Claim, advance: Advance = ignore_progress, peek: bool = False
) -> Transcript:
    """Run a predictor over the text and code the text.

    Args:
        predictor: told one token of each row at a time.
        claim: the text.
        advance: called with the number of tokens that have just been coded.
        peek: show the predictor each batch first, as its author's script does.

    Raises:
        PredictorError: the predictor did not answer.
    """
    transcript = Transcript({})
    intervals: list[torch.Tensor] = []
    for batch in batches(claim):
        targets = [claim.rows[row].targets for row in batch]
        predictor.reset(starts(claim, batch))
        if peek and isinstance(predictor, Peeker):
            predictor.peek(targets)
        for row, target in zip(batch, targets, strict=True):
            transcript.bits[int(row)] = np.zeros(len(target))
        for position in range(max(map(len, targets))):
            p = predictor.distribution()
            alive = np.array([n for n, target in enumerate(targets) if position < len(target)])
            tokens = np.array([targets[n][position] for n in alive])
            for n, token in zip(alive, tokens, strict=True):
                transcript.mass.see(int(batch[n]), position, p[n])
                transcript.bits[int(batch[n])][position] = -_log2(p[n, token])
            width = p.shape[-1]
            begin, size, _ = frequencies.intervals(levels(p[alive]), torch.from_numpy(tokens))
            intervals.append(torch.stack((begin, size)))
            came = np.full(len(batch), ENDED, np.int64)
            came[alive] = tokens
            predictor.update(came)
            advance(len(alive))
    begin, size = torch.cat(intervals, 1).numpy()
    bits = frequencies.total_bits(width)
    transcript.stream = _code(begin, size, bits)
    transcript.ideal_bits = float(bits * len(size) - np.log2(size).sum())
    return transcript


def decode(predictor: Predictor, claim: Claim, stream: bytes, advance: Advance = ignore_progress) -> Place | None:
    """Decode a stream with a predictor; return the place of the first token that differs from the text, or None.

    The decoder knows the number of rows, the token before each row and, unless ends are coded, the lengths of rows. It
    stops at the first difference.

    Args:
        predictor: told the decoded tokens only.
        claim: the text to compare with.
        stream: the bytes that `encode` wrote.
        advance: called with the number of tokens that have just been decoded.

    Raises:
        PredictorError: the predictor did not answer.
    """
    data, state = np.frombuffer(stream, np.uint8), range_coder.new_encoder()
    range_coder.start_decoder(state, data)
    for batch in batches(claim):
        lengths = [None if claim.ends_coded else len(claim.rows[row].targets) for row in batch]
        predictor.reset(starts(claim, batch))
        alive = [n for n, length in enumerate(lengths) if length != 0]
        position = 0
        while alive:
            said = levels(predictor.distribution())
            came = np.full(len(batch), ENDED, np.int64)
            for n in alive:
                came[n] = token = _take(state, data, said[n : n + 1])
                if token != claim.rows[batch[n]].targets[position]:
                    return Place(int(batch[n]), position)
            predictor.update(came)
            advance(len(alive))
            position += 1
            alive = [n for n in alive if (came[n] != BOS if lengths[n] is None else position != lengths[n])]
    return None


def _log2(p: float) -> float:
    return float(np.log2(max(p, LEAST))) if np.isfinite(p) else float(np.log2(LEAST))


def _code(begin: NDArray[np.int64], size: NDArray[np.int64], bits: int) -> bytes:
    state = range_coder.new_encoder()
    out = np.zeros(range_coder.MAX_SYMBOL_BYTES * len(size) + range_coder.CODE_BYTES + 1, np.uint8)
    range_coder.encode_intervals(state, out, begin, size, bits)
    return out[: range_coder.finish(state, out)].tobytes()


def _take(state: range_coder.State, data: NDArray[np.uint8], said: torch.Tensor) -> int:
    """Decode one token from levels `said` [1, V]."""
    bits = frequencies.total_bits(said.shape[-1])
    unit = state[1] >> np.uint64(bits)
    target = torch.tensor([range_coder.target(state, unit, 1 << bits)])
    token, begin, size = (int(found) for found in frequencies.find(said, target))
    range_coder.take(state, data, begin, size, unit)
    return token
