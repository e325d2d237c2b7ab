"""eval.welch: Student's tail against published tables, Welch's test against a published example."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.welch import holm, incomplete_beta, moments, student_tail, welch

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


def test_holm_is_the_smallest_adjustment_that_keeps_the_order():
    tails = [0.011, 0.02, 0.3, 0.012, 0.9]
    assert holm(tails) == pytest.approx([0.055, 0.06, 0.6, 0.055, 0.9])
    assert holm([]) == []
