"""Test with Welch's test that a score over several seeds beats a record by the margin that the challenge requires.

The rule asks for 0.005 nats a token, at p < 0.01. Two tokenizers have different tokens, so scores are compared in bits
per byte, and the 0.005 nats apply to the record's tokens.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from codec.errors import FormatError
from codec.files import read_bytes
from eval.welch import moments, student_tail, welch

REQUIRED_NATS = 0.005
REQUIRED_P = 0.01
LEAST_RUNS = 3
"""The challenge asks for three logs with a record."""


@dataclass(frozen=True)
class Record:
    """The score to beat. `bpb` has one value for each seed; `text_bytes` is the size of the text that was scored."""

    name: str
    bpb: tuple[float, ...]
    bytes_per_token: float
    text_bytes: int

    @property
    def required(self) -> float:
        """Return the improvement that the rule asks for, in bits per byte."""
        return REQUIRED_NATS / math.log(2) / self.bytes_per_token


@dataclass(frozen=True)
class Comparison:
    """Welch's test of the claim that the mean of our scores is below the record's by more than `required`.

    Scores are bits per byte; `deviation` and `record_deviation` are sample standard deviations, 0 for one score.
    """

    mean: float
    deviation: float
    record_mean: float
    record_deviation: float
    required: float
    t: float
    degrees: float
    p: float


def load_record(path: Path) -> Record:
    """Read {"name", "bpb": [a value a seed], "bytes_per_token", "text_bytes"} from a JSON file.

    Raises:
        FormatError: the file is not of this form, or has numbers that no record can have.
    """
    try:
        values = json.loads(read_bytes(path, "record"))
        scores = tuple(float(value) for value in values["bpb"])
        record = Record(str(values["name"]), scores, float(values["bytes_per_token"]), int(values["text_bytes"]))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        if isinstance(error, FormatError):
            raise
        raise FormatError(
            f'record {path}: expected {{"name", "bpb": [a value a seed], "bytes_per_token", "text_bytes"}} ({error!r})'
        ) from error
    numbers = (*record.bpb, record.bytes_per_token, record.text_bytes)
    if not record.bpb or not all(math.isfinite(number) and number > 0 for number in numbers):
        raise FormatError(f"record {path}: {record}; expected scores and sizes above 0")
    return record


def compare(scores: Sequence[float], record: Record) -> Comparison:
    """Test our scores, in bits per byte, against a record.

    A side with one score adds no variance: the other side's variance decides alone, as in a one-sample test. Without
    variance on either side there is nothing to test, and p is 1.
    """
    mean, variance = moments(scores)
    record_mean, record_variance = moments(record.bpb)
    t, degrees = welch(
        record_mean - record.required - mean, (variance, len(scores)), (record_variance, len(record.bpb))
    )
    p = student_tail(t, degrees) if degrees else 1.0
    deviations = math.sqrt(variance), math.sqrt(record_variance)
    return Comparison(mean, deviations[0], record_mean, deviations[1], record.required, t, degrees, p)


def refusals(comparison: Comparison, runs: int, text_bytes: int, record: Record) -> list[str]:
    """List the reasons why the figures are no record; an empty list means that they are a record."""
    found = []
    if runs < LEAST_RUNS:
        found.append(f"{runs} runs, expected at least {LEAST_RUNS}")
    if abs(text_bytes / record.text_bytes - 1) > 1e-4:  # the challenge's own denominators differ by 5e-5
        found.append(f"scored on {text_bytes:,} bytes, {record.name} on {record.text_bytes:,}")
    if not comparison.p < REQUIRED_P:
        found.append(
            f"mean {comparison.mean:.5f} bpb against {comparison.record_mean:.5f}: p = {comparison.p:.3g} for an "
            f"improvement of {comparison.required:.5f} ({REQUIRED_NATS} nats a token), expected under {REQUIRED_P}"
        )
    return found
