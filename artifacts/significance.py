"""Whether a score over several seeds beats a record by what the challenge requires: Welch's test.

The rule asks for 0.005 nats a token, at p < 0.01. Two tokenizers have different tokens, so scores are compared in bits
per byte and the 0.005 nats are those of the record's tokens. Nothing but `math` is needed: the tail of Student's
distribution is an incomplete beta function (NIST Digital Library of Mathematical Functions, 8.17.22 and 26.5 of
Abramowitz and Stegun).
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from codec.errors import FormatError
from codec.files import read_bytes

REQUIRED_NATS = 0.005
REQUIRED_P = 0.01
LEAST_RUNS = 3
"""The challenge asks for three logs with a record."""

_TINY = 1e-300
_PRECISION = 1e-15


@dataclass(frozen=True)
class Record:
    """The score to beat. `bpb` has one value a seed; `text_bytes` is what they were measured on."""

    name: str
    bpb: tuple[float, ...]
    bytes_per_token: float
    text_bytes: int

    @property
    def required(self) -> float:
        """The improvement in bits per byte that the rule asks for."""
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
        FormatError: not such a file, or numbers that no record can have.
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

    A side of one score adds no variance of its own: then the other side's alone decides, as in a one-sample test.
    With no variance on either side there is nothing to test and p is 1.
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
    """Why these figures are no record; empty if they are one."""
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


def moments(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample variance, 0 for a single value."""
    mean = math.fsum(values) / len(values)
    squares = math.fsum((value - mean) ** 2 for value in values)
    return mean, squares / max(1, len(values) - 1)


def welch(difference: float, a: tuple[float, int], b: tuple[float, int]) -> tuple[float, float]:
    """Welch's t of a difference of means, and its degrees of freedom (Welch 1947), from (variance, count) of each side.

    Degrees of freedom are 0 where neither side varies.

    >>> t, degrees = welch(-1.58, (3.200556, 10), (4.009, 10))  # Student's sleep data
    >>> round(t, 4), round(degrees, 3)
    (-1.8608, 17.776)
    """
    parts = [(variance / count, count) for variance, count in (a, b)]
    error = sum(part for part, _ in parts)
    if not error:
        return (math.copysign(math.inf, difference) if difference else 0.0), 0.0
    degrees = error**2 / sum(part**2 / (count - 1) for part, count in parts if count > 1)
    return difference / math.sqrt(error), degrees


def student_tail(t: float, degrees: float) -> float:
    """The probability that Student's t of so many degrees of freedom is greater than t.

    >>> round(student_tail(2.764, 10), 4)  # the tables' 99th percentile
    0.01
    """
    half = 0.5 * incomplete_beta(degrees / 2, 0.5, degrees / (degrees + t * t))
    return half if t >= 0 else 1 - half


def incomplete_beta(a: float, b: float, x: float) -> float:
    """The regularised incomplete beta function I_x(a, b) for 0 <= x <= 1, by its continued fraction (DLMF 8.17.22).

    The fraction converges fast below (a + 1) / (a + b + 2); above, the symmetry I_x(a, b) = 1 - I_{1-x}(b, a) serves.
    """
    if x in (0.0, 1.0):
        return x
    if x > (a + 1) / (a + b + 2):
        return 1 - incomplete_beta(b, a, 1 - x)
    scale = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    # Lentz's method: the fraction 1/(1 + d1/(1 + d2/(1 + ...))) from the front, as a product of ratios.
    value, numerator, denominator = _TINY, _TINY, 0.0
    term, m = 1.0, 0
    while True:
        denominator = 1 / (1 + term * denominator or _TINY)
        numerator = 1 + term / numerator or _TINY
        ratio = numerator * denominator
        value *= ratio
        if abs(ratio - 1) < _PRECISION:
            return math.exp(scale) / a * value
        m += 1
        k = m // 2
        if m % 2:
            term = -(a + k) * (a + b + k) * x / ((a + 2 * k) * (a + 2 * k + 1))
        else:
            term = k * (b - k) * x / ((a + 2 * k - 1) * (a + 2 * k))
