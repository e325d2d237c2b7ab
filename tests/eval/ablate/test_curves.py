"""eval.ablate.curves: exact on curves that are lines in bytes and log distortion; errors against simulation."""

import math

import numpy as np
import pytest

from eval.ablate.curves import Sample, at_bytes, at_distortion, bytes_ratio, curve, distortion_ratio, envelope


def line(name, offset, sizes=(100, 200, 300), windows=None):
    """A codec whose distortion halves every 20 bytes, and is 1 at `offset` bytes."""
    values = [2.0 ** ((offset - size) / 20) for size in sizes]
    return curve(
        name, [Sample(s, v, None if windows is None else v * windows) for s, v in zip(sizes, values, strict=True)]
    )


def test_readings_of_an_exponential_are_exact_between_and_beyond_its_points():
    one = line("one", 80)
    for size in (110, 200, 290, 340, 60):
        distortion = 2.0 ** ((80 - size) / 20)
        assert at_bytes(one, size).distortion == pytest.approx(distortion)
        assert at_distortion(one, distortion).bytes == pytest.approx(size)
        assert at_bytes(one, size).extrapolated == at_distortion(one, distortion).extrapolated == (size in (340, 60))


def test_ratios_of_two_lines():
    one, other = line("one", 80), line("other", 100)
    level = at_bytes(other, 250).distortion
    assert bytes_ratio(one, other, level).value == pytest.approx(230 / 250)
    assert bytes_ratio(one, other, level).error == 0
    assert distortion_ratio(one, other, 220).value == pytest.approx(0.5)


def test_points_that_are_beaten_or_have_no_logarithm_are_left_out():
    samples = [
        Sample(10, 4.0),
        Sample(20, 5.0),
        Sample(30, 2.0),
        Sample(30, 3.0),
        Sample(40, -1.0),
        Sample(50, math.nan),
    ]
    assert [s.bytes for s in curve("c", samples).samples] == [10, 30]
    assert curve("c", samples[:2]) is None


def test_the_envelope_is_convex():
    found = envelope(
        "c", [Sample(0, math.exp(-0.0)), Sample(1, math.exp(-0.5)), Sample(2, math.exp(-2)), Sample(3, math.exp(-2.5))]
    )
    assert [s.bytes for s in found.samples] == [0, 2, 3]
    generator = np.random.default_rng(0)
    cloud = [Sample(int(b), float(np.exp(-b / 50 + generator.normal(0, 0.3)))) for b in generator.integers(0, 200, 60)]
    hull = envelope("c", cloud)
    for sample in cloud:
        if hull.samples[0].bytes <= sample.bytes <= hull.samples[-1].bytes:
            assert at_bytes(hull, sample.bytes).distortion <= sample.distortion * (1 + 1e-9)


def test_errors_cancel_where_windows_agree():
    windows = np.array([0.2, 0.5, 0.3])
    one, other = line("one", 80, windows=windows), line("other", 100, windows=windows)
    assert distortion_ratio(one, other, 200).error == pytest.approx(0, abs=1e-12)
    unlike = line("other", 100, windows=windows[::-1])
    assert distortion_ratio(one, unlike, 200).error > 0.01
    with pytest.raises(ValueError, match="pairs"):
        distortion_ratio(one, line("other", 100, windows=np.ones(2) / 2), 200)


def test_errors_are_the_spread_over_texts():
    generator = np.random.default_rng(3)
    found, errors = [], []
    sizes, count = (100, 200, 300), 40
    for _ in range(600):
        common = generator.gamma(8, size=count)
        curves = []
        for offset in (80, 100):
            samples = []
            for size in sizes:
                parts = 2.0 ** ((offset - size) / 20) * common * generator.gamma(50, 1 / 50, count) / (8 * count)
                samples.append(Sample(size, float(parts.sum()), parts))
            curves.append(curve("c", samples))
        ratio = bytes_ratio(*curves, 2.0 ** ((90 - 230) / 20))
        found.append(ratio.value)
        errors.append(ratio.error)
    assert np.mean(found) == pytest.approx(220 / 240, rel=0.002)
    assert np.std(found) == pytest.approx(np.mean(errors), rel=0.1)
