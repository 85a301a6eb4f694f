import itertools
import math
from fractions import Fraction

import mpmath
import numpy as np
import pytest

from subspace_lab.theory.mask_overlap import (
    coverage_pmf,
    coverage_time,
    equal_pairs_variance,
    exact_k_overlap_pmf,
    expected_equal_pairs,
    jaccard_moments,
    mask_collision_rate,
    mask_overlap_pmf,
    p_empty,
    pair_coverage_bounds,
    untouched_probability,
)

LAWS = pytest.mark.parametrize(("rank", "keep_prob"), [(1, 0.3), (3, 0.5), (4, 0.9), (5, 0.7)])


def weighted_pairs(rank, keep_prob):
    """All pairs of masks with their probability: (mask, next mask, weight)."""
    masks = np.array(list(itertools.product([0, 1], repeat=rank)))
    weights = np.prod(np.where(masks, keep_prob, 1 - keep_prob), axis=1)
    for (mask, weight), (other, other_weight) in itertools.product(
        zip(masks, weights, strict=True), repeat=2
    ):
        yield mask, other, weight * other_weight


@LAWS
def test_overlap_law(deviation, rank, keep_prob):
    counted = np.zeros(rank + 1)
    for mask, other, weight in weighted_pairs(rank, keep_prob):
        counted[mask @ other] += weight
    error = np.abs(counted - mask_overlap_pmf(rank, keep_prob=keep_prob)).max()
    deviation("T1: overlap of two masks is Bin(r, q²)", mask_overlap_pmf, error, 1e-14)


@LAWS
def test_overlap_law_given_the_first_size(deviation, rank, keep_prob):
    for kept in range(rank + 1):
        counted = np.zeros(rank + 1)
        for mask, other, weight in weighted_pairs(rank, keep_prob):
            counted[mask @ other] += weight * (mask.sum() == kept)
        counted /= counted.sum()
        error = np.abs(counted - mask_overlap_pmf(rank, keep_prob=keep_prob, kept=kept)).max()
        deviation("T1: overlap given |M_t| = k is Bin(k, q)", mask_overlap_pmf, error, 1e-14)


@pytest.mark.parametrize(("rank", "kept", "next_kept"), [(5, 2, 2), (6, 4, 3), (4, 4, 1)])
def test_exact_k_overlap(deviation, rank, kept, next_kept):
    counted = np.zeros(rank + 1)
    subsets = itertools.combinations(range(rank), kept)
    for first, second in itertools.product(subsets, itertools.combinations(range(rank), next_kept)):
        counted[len(set(first) & set(second))] += 1
    pmf = exact_k_overlap_pmf(rank, kept=kept, next_kept=next_kept)
    error = np.abs(counted / counted.sum() - pmf).max()
    deviation("T1: exact-k overlap is hypergeometric", exact_k_overlap_pmf, error, 1e-14)
    overlap, share = np.arange(rank + 1), next_kept / rank
    mean, variance = pmf @ overlap, pmf @ overlap**2 - (pmf @ overlap) ** 2
    expected = kept * share * (1 - share) * (rank - kept) / (rank - 1)
    error = max(abs(mean - kept * share), abs(variance - expected))
    deviation("T1: exact-k overlap, mean and variance", exact_k_overlap_pmf, error, 1e-13)


@LAWS
def test_jaccard_moments(deviation, rank, keep_prob):
    values, weights, unions = [], [], []
    for mask, other, weight in weighted_pairs(rank, keep_prob):
        union = (mask | other).sum()
        values.append((mask & other).sum() / union if union else 1.0)
        weights.append(weight)
        unions.append(union)
    values, weights, full = np.array(values), np.array(weights), np.array(unions) > 0
    conditional = np.where(full, weights, 0) / weights[full].sum()
    moments = jaccard_moments(rank, keep_prob=keep_prob)
    counted = [
        conditional @ values,
        conditional @ values**2 - (conditional @ values) ** 2,
        weights @ values,
        weights @ values**2 - (weights @ values) ** 2,
    ]
    found = [moments.mean_nonempty, moments.variance_nonempty, moments.mean, moments.variance]
    error = np.abs(np.subtract(counted, found)).max()
    deviation("T1: mean and variance of the Jaccard index", jaccard_moments, error, 1e-14)


@LAWS
def test_empty_equal_and_untouched(deviation, rank, keep_prob):
    empty = equal = 0.0
    for mask, other, weight in weighted_pairs(rank, keep_prob):
        empty += weight * (not mask.any() or not other.any())
        equal += weight * bool((mask == other).all())
    error = abs(empty - p_empty(rank, keep_prob=keep_prob, layers=2))
    deviation("T1: some of L layers has an empty mask", p_empty, error, 1e-14)
    error = abs(equal - mask_collision_rate(rank, keep_prob=keep_prob))
    deviation("T1: two masks are equal", mask_collision_rate, error, 1e-14)
    # `rank` independent tokens leave a coordinate untouched as often as a mask of r is empty.
    alone = untouched_probability(keep_prob=keep_prob, tokens=rank)
    error = abs(alone - p_empty(rank, keep_prob=keep_prob))
    deviation("T1: no token of N keeps a coordinate", untouched_probability, error, 1e-14)


def test_variance_of_equal_pairs_by_counting_every_sequence(deviation):
    rank, keep_prob, steps = 1, 0.3, 5
    mean = square = 0.0
    for sequence in itertools.product([0, 1], repeat=steps):
        weight = np.prod([keep_prob if kept else 1 - keep_prob for kept in sequence])
        pairs = sum(a == b for a, b in itertools.combinations(sequence, 2))
        mean, square = mean + weight * pairs, square + weight * pairs**2
    variance = equal_pairs_variance(rank, keep_prob=keep_prob, steps=steps)
    error = abs(variance - (square - mean**2))
    deviation("T1: variance of the pairs of equal masks", equal_pairs_variance, error, 1e-13)


def test_equal_pairs_by_counting_every_sequence(deviation):
    keep_prob, expected = 0.3, 0.0
    for sequence in itertools.product([0, 1], repeat=4):
        weight = math.prod(keep_prob if bit else 1 - keep_prob for bit in sequence)
        expected += weight * sum(a == b for a, b in itertools.combinations(sequence, 2))
    error = abs(expected - expected_equal_pairs(1, keep_prob=keep_prob, steps=4))
    deviation("T1: pairs of equal masks in T steps", expected_equal_pairs, error, 1e-14)


@pytest.mark.parametrize("keep_prob", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("directions", [1, 8, 64, 128, 896])
def test_coverage_time(deviation, directions, keep_prob):
    # The alternating sum, exact in rational arithmetic.
    prune = 1 - Fraction(keep_prob)
    with mpmath.workdps(400):
        true = mpmath.fsum(
            (-1) ** (j + 1)
            * mpmath.binomial(directions, j)
            / (1 - mpmath.mpf(prune.numerator) ** j / mpmath.mpf(prune.denominator) ** j)
            for j in range(1, directions + 1)
        )
        error = float(abs(coverage_time(directions, keep_prob=keep_prob) / true - 1))
    deviation("T1: coverage time of R directions (relative)", coverage_time, error, 1e-13)


def test_law_of_the_slowest_direction(deviation):
    for directions, keep_prob in [(1, 0.3), (7, 0.5), (40, 0.9)]:
        pmf = coverage_pmf(directions, keep_prob=keep_prob)
        mean = pmf @ np.arange(len(pmf))
        error = abs(mean / coverage_time(directions, keep_prob=keep_prob) - 1)
        deviation("T1: mean of the law of coverage (relative)", coverage_pmf, error, 1e-12)
    assert coverage_pmf(3, keep_prob=1.0).tolist() == [0, 1]


def test_coverage_time_where_inclusion_exclusion_fails(deviation):
    alternating = sum((-1) ** (j + 1) * math.comb(64, j) / (1 - 0.5**j) for j in range(1, 65))
    assert abs(alternating - 7.344) > 10
    error = abs(coverage_time(64, keep_prob=0.5) - 7.344)
    deviation("T1: coverage time is 7.344 at R = 64, q = 0.5", coverage_time, error, 5e-4)


def test_nothing_is_random_at_keep_prob_1():
    assert coverage_time(8, keep_prob=1.0) == 1.0
    assert p_empty(8, keep_prob=1.0) == 0.0
    assert mask_collision_rate(8, keep_prob=1.0) == 1.0


def uncovered_pairs(rank, keep_prob, steps):
    """P(some pair never kept together) by a dynamic programme over the sets of covered pairs."""
    pairs = list(itertools.combinations(range(rank), 2))
    law = {frozenset(): 1.0}
    for _ in range(steps):
        following = {}
        for mask in itertools.product([0, 1], repeat=rank):
            weight = math.prod(keep_prob if bit else 1 - keep_prob for bit in mask)
            kept = frozenset(pair for pair in pairs if mask[pair[0]] and mask[pair[1]])
            for covered, chance in law.items():
                union = covered | kept
                following[union] = following.get(union, 0.0) + chance * weight
        law = following
    return 1 - law.get(frozenset(pairs), 0.0)


@pytest.mark.parametrize("steps", [1, 5, 20, 40])
@pytest.mark.parametrize("rank", [2, 3, 4])
def test_pair_coverage_bounds(deviation, rank, steps):
    true = uncovered_pairs(rank, 0.6, steps)
    bounds = pair_coverage_bounds(rank, keep_prob=0.6, steps=steps)
    error = max(bounds.lower - true, true - bounds.upper, 0.0)
    deviation("T1: pair coverage within its bounds", pair_coverage_bounds, error, 1e-12)
    if steps == 40:
        error = (bounds.upper - bounds.lower) / true
        deviation(
            "T1: pair coverage, width of the bounds at t = 40", pair_coverage_bounds, error, 1e-4
        )


def test_bonferroni_terms_by_enumeration(deviation):
    keep_prob, rank, steps = 0.6, 5, 12
    masks = np.array(list(itertools.product([0, 1], repeat=rank)))
    weights = np.prod(np.where(masks, keep_prob, 1 - keep_prob), axis=1)
    apart = [1 - masks[:, i] * masks[:, j] for i, j in itertools.combinations(range(rank), 2)]
    first = sum((weights @ one) ** steps for one in apart)
    second = sum(
        (weights @ (one * other)) ** steps for one, other in itertools.combinations(apart, 2)
    )
    bounds = pair_coverage_bounds(rank, keep_prob=keep_prob, steps=steps)
    assert 0 < first - second < first < 1
    error = max(abs(bounds.lower - (first - second)), abs(bounds.upper - first))
    deviation("T1: Bonferroni sums of pair coverage", pair_coverage_bounds, error, 1e-14)


@pytest.mark.parametrize(
    ("rank", "keep_prob", "row"),
    [
        (8, 0.5, (2.00, 1.22, 0.333, 3.9e-3, 4.4, 9.1, 1.8e4)),
        (8, 0.7, (3.92, 1.41, 0.538, 6.6e-5, 2.8, 5.5, 5.8e4)),
        (8, 0.9, (6.48, 1.11, 0.818, 1e-8, 1.7, 3.1, 9.2e5)),
        (16, 0.5, (4.00, 1.73, 0.333, 1.5e-5, 5.4, 10.1, 69)),
        (16, 0.7, (7.84, 2.00, 0.538, 4e-9, 3.3, 6.1, 738)),
        (32, 0.5, (8.00, 2.45, 0.333, 2e-10, 6.4, 11.1, 0.001)),
        (32, 0.9, (25.9, 2.22, 0.818, None, 2.3, 3.7, 7.9e3)),
    ],
)
def test_printed_numbers(rank, keep_prob, row):
    overlap = np.arange(rank + 1)
    pmf = mask_overlap_pmf(rank, keep_prob=keep_prob)
    found = (
        pmf @ overlap,
        math.sqrt(pmf @ overlap**2 - (pmf @ overlap) ** 2),
        jaccard_moments(rank, keep_prob=keep_prob).mean,
        p_empty(rank, keep_prob=keep_prob),
        coverage_time(rank, keep_prob=keep_prob),
        coverage_time(28 * rank, keep_prob=keep_prob),
        expected_equal_pairs(rank, keep_prob=keep_prob, steps=3000),
    )
    for printed, number in zip(row, found, strict=True):
        assert printed is None or number == pytest.approx(
            printed, rel=0.17 if number < 1e-2 else 0.03
        )


def test_wrong_arguments():
    with pytest.raises(ValueError, match="keep_prob"):
        mask_overlap_pmf(4, keep_prob=1.5)
    with pytest.raises(ValueError, match="kept"):
        exact_k_overlap_pmf(4, kept=5)
    with pytest.raises(ValueError, match="directions"):
        coverage_time(0, keep_prob=0.5)
