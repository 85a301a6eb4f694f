from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from subspace_lab.stats.intervals import accuracy_interval, accuracy_over_seeds, mean_interval


def test_t_interval_equals_scipys():
    sample = np.random.default_rng(0).normal(3, 2, 11)
    found = mean_interval(sample, level=0.9)
    truth = stats.ttest_1samp(sample, 0).confidence_interval(0.9)
    assert (found.low, found.high) == pytest.approx((truth.low, truth.high), rel=1e-12)
    assert found.estimate == pytest.approx(sample.mean())
    assert found.count == 11


def test_t_interval_covers_the_mean_as_often_as_it_says():
    samples = np.random.default_rng(1).normal(5, 3, (20_000, 4))
    found = mean_interval(samples, level=0.8)
    covered = ((found.low <= 5) & (found.high >= 5)).mean()
    assert abs(covered - 0.8) < 4 * np.sqrt(0.8 * 0.2 / 20_000)


def test_missing_values_are_left_out_and_one_value_has_no_interval():
    found = mean_interval([[1.0, np.nan, 3.0], [2.0, np.nan, np.nan]])
    alone = mean_interval([1.0, 3.0])
    assert (found.low[0], found.high[0]) == pytest.approx((alone.low, alone.high))
    assert list(found.estimate) == [2.0, 2.0]
    assert np.isnan([found.low[1], found.high[1]]).all()
    assert list(found.count) == [2, 1]


@pytest.mark.parametrize(("correct", "total"), [(0, 7), (3, 7), (7, 7), (610, 1319)])
def test_wilson_interval_solves_its_equation(correct, total):
    """Its ends are the accuracies p at which |p - estimate| = z sqrt(p (1 - p) / n)."""
    found = accuracy_interval(correct, total)
    z = stats.norm.ppf(0.975)
    for p in (found.low, found.high):
        assert abs(p - found.estimate) == pytest.approx(z * np.sqrt(p * (1 - p) / total), abs=1e-9)


def test_intervals_of_accuracies_over_seeds_stay_between_0_and_1():
    values = [0.2, 0.9, 0.8]
    found, unlimited = accuracy_over_seeds(values, examples=10), mean_interval(values)
    assert unlimited.low < 0 and unlimited.high > 1
    assert (found.estimate, found.low, found.high) == (unlimited.estimate, 0, 1)
    close = accuracy_over_seeds([0.5, 0.52, 0.54], examples=50)
    assert close == mean_interval([0.5, 0.52, 0.54])


@pytest.mark.parametrize(
    "values", [[0.0], [0.0, 0.0], [1.0, 1.0, 1.0], [0.7, 0.7], [0.1 + 0.2, 0.3]]
)
def test_seeds_that_score_the_same_have_wilsons_interval(values):
    found = accuracy_over_seeds(values, examples=20)
    wilson = accuracy_interval(round(20 * values[0]), 20)
    assert (found.low, found.high) == (wilson.low, wilson.high)
    assert found.low < found.high


def test_one_seed_between_0_and_1_has_no_interval_over_seeds():
    assert np.isnan(accuracy_over_seeds([0.7], examples=20).low)


def test_impossible_counts_are_refused():
    with pytest.raises(ValueError, match="9 correct answers of 8"):
        accuracy_interval(9, 8)
