"""artifacts.significance: Student's tail against published tables, Welch's test against a published example."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from artifacts.significance import (
    Record,
    compare,
    incomplete_beta,
    load_record,
    moments,
    refusals,
    student_tail,
    welch,
)
from codec.errors import FormatError

PERCENTILES = [  # one-sided tail, degrees of freedom, t: the usual printed table
    (0.05, 1, 6.314),
    (0.025, 1, 12.706),
    (0.01, 2, 6.965),
    (0.01, 4, 3.747),
    (0.005, 5, 4.032),
    (0.10, 7, 1.415),
    (0.01, 10, 2.764),
    (0.001, 15, 3.733),
    (0.025, 30, 2.042),
    (0.0005, 120, 3.373),
]

SLEEP = ((0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0), (1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4))
"""Extra hours of sleep under two drugs, from Student (1908): Welch's t = -1.8608, 17.776 degrees, p = 0.07939."""

RECORD = Record("#1", (1.0602, 1.0611, 1.0607), 3.7, 151_080_891)


@pytest.mark.parametrize("p, degrees, t", PERCENTILES)
def test_student_tail_is_the_table(p, degrees, t):
    assert student_tail(t, degrees) == pytest.approx(p, rel=2e-3)
    assert student_tail(-t, degrees) == pytest.approx(1 - p, rel=1e-4)


@given(st.floats(-50, 50))
def test_one_and_two_degrees_have_closed_forms(t):
    near = 1e-8  # t enters as degrees / (degrees + t^2), which forgets a t below the root of a double's precision
    assert student_tail(t, 1) == pytest.approx(0.5 - math.atan(t) / math.pi, abs=near)
    assert student_tail(t, 2) == pytest.approx(0.5 - t / (2 * math.sqrt(2 + t * t)), abs=near)


@given(st.integers(1, 12), st.integers(1, 12), st.floats(0.0, 1.0))
def test_incomplete_beta_of_integers_is_a_binomial_sum(a, b, x):
    n = a + b - 1
    direct = math.fsum(math.comb(n, j) * x**j * (1 - x) ** (n - j) for j in range(a, n + 1))
    assert incomplete_beta(a, b, x) == pytest.approx(direct, rel=1e-10, abs=1e-13)


def test_welch_is_the_published_example():
    (mean_a, variance_a), (mean_b, variance_b) = moments(SLEEP[0]), moments(SLEEP[1])
    t, degrees = welch(mean_a - mean_b, (variance_a, 10), (variance_b, 10))
    assert (round(t, 4), round(degrees, 3)) == (-1.8608, 17.776)
    assert round(2 * student_tail(-t, degrees), 5) == 0.07939


def test_five_thousandths_of_a_nat_in_bits_per_byte():
    assert RECORD.required == pytest.approx(0.005 / math.log(2) / 3.7)
    ours = [score - RECORD.required for score in RECORD.bpb]
    assert compare(ours, RECORD).t == pytest.approx(0, abs=1e-9)
    assert compare(ours, RECORD).p == pytest.approx(0.5)


def test_a_clear_improvement_passes_and_less_does_not():
    clear = compare([1.0560, 1.0565, 1.0562], RECORD)
    assert clear.p < 0.01
    assert refusals(clear, 3, RECORD.text_bytes, RECORD) == []
    near = compare([1.0585, 1.0590, 1.0588], RECORD)
    assert 0.01 < near.p < 0.7
    assert "expected under 0.01" in refusals(near, 3, RECORD.text_bytes, RECORD)[0]


def test_other_text_and_too_few_runs_are_refused():
    clear = compare([1.0, 1.0001], RECORD)
    found = " ".join(refusals(clear, 2, 2_504_310, RECORD))
    assert "2 runs" in found
    assert "2,504,310 bytes" in found
    assert refusals(clear, 3, 151_080_645, RECORD) == []  # the challenge's denominators differ a little


def test_one_score_on_a_side_leaves_the_others_variance():
    single = Record("#2", (1.06,), 3.7, 1)
    found = compare([1.050, 1.051, 1.052], single)
    mean, variance = moments([1.050, 1.051, 1.052])
    assert found.t == pytest.approx((1.06 - single.required - mean) / math.sqrt(variance / 3))
    assert found.degrees == pytest.approx(2)
    assert compare([1.0], single).p == 1.0  # nothing varies: nothing is shown
    assert compare([1.0, 1.0, 1.0], single).p == 1.0


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"name": "x"}',
        '{"name": "x", "bpb": [], "bytes_per_token": 3, "text_bytes": 9}',
        '{"name": "x", "bpb": [NaN], "bytes_per_token": 3, "text_bytes": 9}',
        '{"name": "x", "bpb": [1.1], "bytes_per_token": 0, "text_bytes": 9}',
        '{"name": "x", "bpb": ["a"], "bytes_per_token": 3, "text_bytes": 9}',
    ],
)
def test_a_record_that_is_none(tmp_path, text):
    (tmp_path / "record.json").write_text(text)
    with pytest.raises(FormatError, match="record"):
        load_record(tmp_path / "record.json")


def test_a_record_is_read(tmp_path):
    values = {"name": "#1", "bpb": list(RECORD.bpb), "bytes_per_token": 3.7, "text_bytes": 151_080_891}
    (tmp_path / "record.json").write_text(json.dumps(values))
    assert load_record(tmp_path / "record.json") == RECORD
