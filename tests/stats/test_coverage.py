"""Intervals cover what they estimate as often as they say: by enumeration, and by simulation.

Simulated shares of N samples are held to four standard errors, 4 sqrt(level (1 - level) / N), where
the interval is exact, and to a stated range where it is an approximation.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats

from subspace_lab.stats.intervals import (
    accuracy_interval,
    accuracy_over_seeds,
    mean_interval,
    ratio_interval,
)
from subspace_lab.stats.multiple import holm
from subspace_lab.stats.paired import paired_difference, sign_flip_test


def share_covered(intervals, truth):
    ends = np.array([(one.low, one.high) for one in intervals])
    return ((ends[:, 0] <= truth) & (truth <= ends[:, 1])).mean()


@pytest.mark.parametrize(("examples", "level"), [(40, 0.95), (300, 0.95), (300, 0.8)])
def test_wilsons_interval_by_enumeration(examples, level):
    """Its coverage swings with the accuracy (Brown, Cai, DasGupta 2001), around its level."""
    counts = np.arange(examples + 1)
    ends = [accuracy_interval(int(k), examples, level=level) for k in counts]
    low, high = (np.array([getattr(one, name) for one in ends]) for name in ("low", "high"))
    accuracies = np.linspace(0.02, 0.98, 193)
    covered = [
        stats.binom.pmf(counts, examples, p) @ ((low <= p) & (p <= high)) for p in accuracies
    ]
    assert np.mean(covered) == pytest.approx(level, abs=0.005)
    assert min(covered) > level - 0.1


@pytest.mark.parametrize(("correct", "total"), [(0, 7), (3, 7), (7, 7), (610, 1319)])
@pytest.mark.parametrize("level", [0.8, 0.95])
def test_wilsons_interval_equals_scipys(correct, total, level):
    found = accuracy_interval(correct, total, level=level)
    truth = stats.binomtest(correct, total).proportion_ci(level, method="wilson")
    assert (found.low, found.high) == pytest.approx((truth.low, truth.high), abs=1e-12)


def test_a_ratio_of_tokens_of_one_length_is_scipys_mean():
    nats = np.random.default_rng(0).gamma(2, 3, 25)
    found = ratio_interval(nats, np.full(25, 4))
    truth = stats.ttest_1samp(nats / 4, 0).confidence_interval()
    assert (found.low, found.high) == pytest.approx((truth.low, truth.high), rel=1e-12)


def test_a_ratio_has_the_error_of_scipys_bootstrap():
    rng = np.random.default_rng(0)
    tokens = rng.integers(3, 60, 400)
    nats = tokens * rng.gamma(2, 0.5, 400)
    found = ratio_interval(nats, tokens)
    resampled = stats.bootstrap(
        (nats, tokens), lambda x, y, axis: x.sum(axis) / y.sum(axis), paired=True,
        n_resamples=2000, batch=500, method="basic", rng=rng,
    )  # fmt: skip
    width = stats.norm.ppf(0.975) * resampled.standard_error
    assert (found.high - found.low) / 2 == pytest.approx(width, rel=0.08)


def test_losses_per_token_are_covered_whatever_the_lengths():
    """Lengths that go with the loss: the mean of the examples' own losses is another number."""
    rng, samples, examples = np.random.default_rng(1), 3000, 60
    tokens = rng.integers(3, 60, (samples, examples))
    nats = tokens * rng.gamma(3, (1 + 20 / tokens) / 3)
    lengths = np.arange(3, 60)
    truth = (lengths * (1 + 20 / lengths)).sum() / lengths.sum()
    found = [ratio_interval(x, y) for x, y in zip(nats, tokens, strict=True)]
    assert share_covered(found, truth) == pytest.approx(0.945, abs=0.015)
    of_examples = mean_interval(nats / tokens)
    assert ((of_examples.low <= truth) & (truth <= of_examples.high)).mean() < 0.7


@pytest.mark.parametrize(
    ("accuracy", "seeds", "examples", "least", "most"),
    [
        (0.7, 5, 300, 0.93, 0.97),
        (0.7, 3, 60, 0.93, 0.98),
        (0.01, 3, 40, 0.85, 1.0),  # seeds that score 0: Wilson's interval in their place
    ],
)
def test_accuracies_over_seeds(accuracy, seeds, examples, least, most):
    rng = np.random.default_rng(2)
    trained = np.clip(
        accuracy + 0.3 * accuracy * (1 - accuracy) * rng.uniform(-1, 1, (2000, seeds)), 0, 1
    )
    scores = rng.binomial(examples, trained) / examples
    found = [accuracy_over_seeds(row, examples=examples) for row in scores]
    assert least <= share_covered(found, accuracy) <= most


def test_paired_differences_are_covered_and_unpaired_ones_are_too_wide():
    rng, samples, seeds = np.random.default_rng(3), 600, 5
    common = rng.normal(0, 1, (samples, seeds))
    first = common + rng.normal(0, 0.1, (samples, seeds))
    second = common + 0.2 + rng.normal(0, 0.1, (samples, seeds))
    found = [
        paired_difference(dict(enumerate(x)), dict(enumerate(y))).difference
        for x, y in zip(first, second, strict=True)
    ]
    assert share_covered(found, 0.2) == pytest.approx(0.95, abs=4 * np.sqrt(0.95 * 0.05 / samples))
    widths = np.array([one.high - one.low for one in found])
    unpaired = stats.ttest_ind(second, first, axis=1).confidence_interval()
    assert np.median(widths) < 0.2 * np.median(unpaired.high - unpaired.low)


def test_the_sign_flip_test_has_scipys_p_values():
    rng = np.random.default_rng(4)
    for differences in rng.normal(0.5, 1, (10, 7)):
        truth = stats.permutation_test(
            (differences,), lambda x, axis: x.mean(axis), permutation_type="samples",
            n_resamples=np.inf, vectorized=True,
        )  # fmt: skip
        assert sign_flip_test(differences).p_value == pytest.approx(truth.pvalue, abs=1e-12)


def test_holms_values_are_those_of_all_intersections():
    """Closed testing (Marcus, Peritz, Gabriel 1976): the worst Bonferroni value of any subset."""
    rng = np.random.default_rng(5)
    for p in rng.beta(0.3, 1, (20, 5)):
        subsets = [list(s) for size in range(1, 6) for s in itertools.combinations(range(5), size)]
        truth = [max(min(1, len(s) * p[s].min()) for s in subsets if i in s) for i in range(5)]
        assert holm(p).tolist() == pytest.approx(truth)


def test_holm_keeps_the_rate_of_any_false_rejection():
    rng = np.random.default_rng(6)
    p = rng.uniform(size=(4000, 6))
    p[:, :2] = rng.beta(0.05, 1, (4000, 2))  # two true effects
    rejected = np.array([holm(row) <= 0.05 for row in p])
    assert rejected[:, 2:].any(axis=1).mean() < 0.05 + 4 * np.sqrt(0.05 * 0.95 / 4000)
    assert (p[:, 2:] <= 0.05).any(axis=1).mean() > 0.15  # without it
    assert rejected[:, :2].mean() > 0.5
