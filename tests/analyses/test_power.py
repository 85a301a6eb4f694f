"""The stated power is true: a fault of that size is noticed in 80 % of runs, none half as large."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from analyses.mask_theory.chance import (
    at_most,
    count_of_events,
    distribution_of_counts,
    mean_by_student,
    mean_of_counts,
    mean_of_draws,
)
from analyses.mask_theory.comparison import NotTestableError, no_exceptions
from analyses.mask_theory.laws import Lattice, Law, law_of_cumulants, law_of_sum

RUNS = 400


def noticed(rows) -> float:
    """Share of rows that disagree."""
    return float(np.mean([row.agrees is False for row in rows]))


def test_of_a_count():
    rng = np.random.default_rng(0)
    power = count_of_events(np.zeros(300), probability=0.3).power
    for factor, low, high in ((1, 0.72, 0.88), (0.4, 0, 0.2)):
        events = rng.random((RUNS, 300)) < 0.3 + factor * power / 300
        share = noticed(count_of_events(draws, probability=0.3) for draws in events)
        assert low <= share <= high


def test_of_a_rare_count_and_of_one_that_cannot_fail():
    row = count_of_events(np.zeros(50), probability=1e-9)
    assert row.agrees and row.unit == "of measured, upwards only"
    assert 1 - (1 - row.power / 50) ** 50 == pytest.approx(0.8)  # one event is enough
    row = count_of_events([True], probability=0.5)
    assert row.power == math.inf and row.agrees is None
    assert row.basis.startswith("cannot fail at this size")


def test_of_a_bound_on_a_count():
    rng = np.random.default_rng(1)
    row = at_most(np.zeros(200), probability=0.05, why="")
    assert row.agrees and row.probability == 1
    events = rng.random((RUNS, 200)) < 0.05 + row.power / 200
    share = noticed(at_most(draws, probability=0.05, why="") for draws in events)
    assert 0.72 <= share <= 0.88


def test_of_a_sum_of_draws():
    rng = np.random.default_rng(2)
    pmf = stats.binom.pmf(np.arange(9), 8, 0.25)
    row = mean_of_counts(np.full(60, 2), pmf=pmf)
    p = (2 + row.power) / 8
    rows = [mean_of_counts(draws, pmf=pmf) for draws in rng.binomial(8, p, size=(RUNS, 60))]
    assert 0.7 <= noticed(rows) <= 0.9


def test_of_a_chi_square():
    """The size of effect is the root mean square relative deviation of probabilities."""
    rng = np.random.default_rng(3)
    pmf = np.full(6, 1 / 6)
    row = distribution_of_counts(np.repeat(np.arange(6), 100), pmf=pmf)
    deviation = row.power * np.array([1, -1, 1, -1, 1, -1])
    draws = rng.choice(6, p=pmf * (1 + deviation), size=(RUNS, 600))
    rows = [distribution_of_counts(each, pmf=pmf) for each in draws]
    assert 0.7 <= noticed(rows) <= 0.9


def test_of_means():
    rng = np.random.default_rng(4)
    row = mean_of_draws(np.zeros(50), expected=0, variance=1, third=0)
    assert row.power == pytest.approx((stats.norm.isf(5e-5) + stats.norm.ppf(0.8)) / 50**0.5)
    normal = rng.normal(row.power, size=(RUNS, 50))
    rows = [mean_of_draws(x, expected=0, variance=1, third=0) for x in normal]
    assert 0.72 <= noticed(rows) <= 0.88
    rows = [mean_by_student(x, expected=0) for x in rng.normal(size=(RUNS, 2))]
    assert noticed(rows) == 0  # the 4 own standard errors of old accused one in five of these
    with pytest.raises(NotTestableError):
        mean_by_student([1.0], expected=0)


def test_of_a_rule_without_exceptions():
    row = no_exceptions(np.zeros(100, dtype=bool))
    assert 1 - (1 - row.power) ** 100 == pytest.approx(0.8)
    assert no_exceptions([]).agrees is None


def test_the_law_of_a_sum_is_exact_and_continues_smoothly():
    law = law_of_sum(stats.binom.pmf(np.arange(4), 3, 0.2), 7)
    for value in range(22):
        assert law.of.cdf(value) == pytest.approx(stats.binom.cdf(value, 21, 0.2), abs=1e-14)
        assert law.of.sf(value) == pytest.approx(stats.binom.sf(value, 21, 0.2), abs=1e-14)
    many = 200_000
    assert law_of_sum(stats.binom.pmf(np.arange(4), 3, 0.2), many).limits() == pytest.approx(
        Law(stats.binom(3 * many, 0.2)).limits(), abs=2
    )
    with pytest.raises(ValueError, match="at least one draw"):
        law_of_sum(np.array([0.5, 0.5]), 0)


def test_laws_by_three_cumulants():
    gamma = stats.gamma(3.0)
    law = law_of_cumulants(3, 3, 6)
    assert law.limits() == pytest.approx((gamma.ppf(5e-5), gamma.isf(5e-5)))
    assert law.probability(12.0) == pytest.approx(2 * gamma.sf(12.0))


def test_limits_and_probabilities_agree_on_a_lattice():
    law = Law(Lattice(stats.binom.pmf(np.arange(41), 40, 0.3)), 0, 40, whole=True)
    for level in (0.3, 0.01, 1e-4):
        low, high = law.limits(level)
        for value in range(41):
            assert (low <= value <= high) == (law.probability(value) > level)
