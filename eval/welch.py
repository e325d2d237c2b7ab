"""Welch's test of a difference of means.

The test needs only `math`: the tail of Student's distribution is an incomplete beta function (NIST Digital Library of
Mathematical Functions, 8.17.22 and 26.5 of Abramowitz and Stegun).
"""

import math
from collections.abc import Sequence

_TINY = 1e-300
_PRECISION = 1e-15


def moments(values: Sequence[float]) -> tuple[float, float]:
    """Return mean and sample variance; the variance of a single value is 0."""
    mean = math.fsum(values) / len(values)
    squares = math.fsum((value - mean) ** 2 for value in values)
    return mean, squares / max(1, len(values) - 1)


def welch(difference: float, a: tuple[float, int], b: tuple[float, int]) -> tuple[float, float]:
    """Return Welch's t of a difference of means, and its degrees of freedom (Welch 1947).

    The degrees of freedom are 0 if neither side varies.

    Args:
        difference: of the means.
        a: (variance, count) of one side.
        b: (variance, count) of the other side.

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
    """Return the probability that Student's t of so many degrees of freedom is greater than t.

    >>> round(student_tail(2.764, 10), 4)  # the tables' 99th percentile
    0.01
    """
    half = 0.5 * incomplete_beta(degrees / 2, 0.5, degrees / (degrees + t * t))
    return half if t >= 0 else 1 - half


def incomplete_beta(a: float, b: float, x: float) -> float:
    """Return the regularised incomplete beta function I_x(a, b) for 0 <= x <= 1.

    Its continued fraction (DLMF 8.17.22) converges fast below (a + 1) / (a + b + 2); above, the symmetry I_x(a, b) = 1
    - I_{1-x}(b, a) serves.
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


def holm(tails: Sequence[float]) -> list[float]:
    """Adjust probabilities [N] of N tests so that one threshold bounds the chance of any false alarm (Holm 1979).

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    found, least = [0.0] * len(tails), 0.0
    for rank, n in enumerate(sorted(range(len(tails)), key=tails.__getitem__)):
        least = max(least, min(1.0, (len(tails) - rank) * tails[n]))
        found[n] = least
    return found
