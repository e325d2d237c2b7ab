"""Rate–distortion curves from measured points: bytes at equal distortion, distortion at equal bytes, with errors.

Between neighbouring points the logarithm of the distortion is linear in the bytes: halving a step costs one bit a
weight and divides the distortion by about four. Errors come from the text of the measurement, paired by window if two
curves were measured on the same windows.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Shares = NDArray[np.float64]


@dataclass(frozen=True)
class Sample:
    """A measured point; `windows` [W] are the parts that sum to the distortion, None if it has no error."""

    bytes: int
    distortion: float
    windows: NDArray[np.float64] | None = None

    @property
    def shares(self) -> Shares:
        """Return each window's share of the distortion; the shares sum to 1."""
        return np.zeros(1) if self.windows is None else self.windows / self.windows.sum()


@dataclass(frozen=True)
class Curve:
    """At least two points, of rising bytes and falling distortion."""

    name: str
    samples: tuple[Sample, ...]


@dataclass(frozen=True)
class Reading:
    """A point on a curve, interpolated or extrapolated."""

    bytes: float
    distortion: float
    slope: float  # bytes for one unit of the distortion's logarithm, negative
    shares: Shares
    extrapolated: bool  # beyond the measured points


@dataclass(frozen=True)
class Ratio:
    """A ratio of two readings, with the standard error that is due to the text."""

    value: float
    error: float
    extrapolated: bool


def curve(name: str, samples: Sequence[Sample]) -> Curve | None:
    """Return the curve through samples that no other sample beats in bytes and distortion; None for fewer than two.

    Samples without distortion, or below 0 (a tax may be, by chance), have no logarithm and are left out.
    """
    best: list[Sample] = []
    for sample in sorted(samples, key=lambda s: (s.bytes, s.distortion)):
        if sample.distortion > 0 and (not best or sample.distortion < best[-1].distortion):
            if best and sample.bytes == best[-1].bytes:
                continue
            best.append(sample)
    return Curve(name, tuple(best)) if len(best) > 1 else None


def envelope(name: str, samples: Sequence[Sample]) -> Curve | None:
    """Return the lower convex hull of samples in bytes and log distortion: a codec with tuned settings."""
    found = curve(name, samples)
    if found is None:
        return None
    hull: list[Sample] = []
    for sample in found.samples:
        while len(hull) > 1 and _steepness(hull[-2], sample) <= _steepness(hull[-2], hull[-1]):
            hull.pop()
        hull.append(sample)
    return Curve(name, tuple(hull))


def at_distortion(curve: Curve, distortion: float) -> Reading:
    """Return the bytes that a curve needs for a distortion above 0."""
    pairs = list(pairwise(curve.samples))
    a, b = next(((a, b) for a, b in pairs if distortion >= b.distortion), pairs[-1])
    return _read(a, b, math.log(distortion / a.distortion) / math.log(b.distortion / a.distortion))


def at_bytes(curve: Curve, size: float) -> Reading:
    """Return the distortion of a curve at a size in bytes."""
    pairs = list(pairwise(curve.samples))
    a, b = next(((a, b) for a, b in pairs if size <= b.bytes), pairs[-1])
    return _read(a, b, (size - a.bytes) / (b.bytes - a.bytes))


def bytes_ratio(one: Curve, other: Curve, distortion: float) -> Ratio:
    """Return the bytes of `one` over the bytes of `other` at the same distortion."""
    a, b = at_distortion(one, distortion), at_distortion(other, distortion)
    if a.bytes <= 0 or b.bytes <= 0:  # far beyond a curve's end
        return Ratio(math.nan, math.nan, True)
    # A distortion that is measured too high by a share e moves a curve by -slope * e bytes.
    error = _error(a.slope / a.bytes, a.shares, b.slope / b.bytes, b.shares)
    return Ratio(a.bytes / b.bytes, a.bytes / b.bytes * error, a.extrapolated or b.extrapolated)


def distortion_ratio(one: Curve, other: Curve, size: float) -> Ratio:
    """Return the distortion of `one` over the distortion of `other` at the same size in bytes."""
    a, b = at_bytes(one, size), at_bytes(other, size)
    value = a.distortion / b.distortion
    return Ratio(value, value * _error(1.0, a.shares, 1.0, b.shares), a.extrapolated or b.extrapolated)


def _steepness(a: Sample, b: Sample) -> float:
    return math.log(b.distortion / a.distortion) / (b.bytes - a.bytes)


def _read(a: Sample, b: Sample, t: float) -> Reading:
    """Return the point that divides the segment from a to b at the share t."""
    drop = math.log(b.distortion / a.distortion)
    return Reading(
        bytes=a.bytes + t * (b.bytes - a.bytes),
        distortion=a.distortion * math.exp(t * drop),
        slope=(b.bytes - a.bytes) / drop,
        shares=(1 - t) * a.shares + t * b.shares,
        extrapolated=not -1e-9 <= t <= 1 + 1e-9,
    )


def _error(weight: float, shares: Shares, other_weight: float, others: Shares) -> float:
    """Return the standard error of weight * log(distortion) - other_weight * log(other's), for independent windows."""
    if len(shares) != len(others):
        raise ValueError("curves of different windows cannot be compared in pairs")
    windows = len(shares)
    if windows < 2:
        return 0.0
    parts = weight * shares - other_weight * others
    return float(np.std(parts, ddof=1)) * math.sqrt(windows)
