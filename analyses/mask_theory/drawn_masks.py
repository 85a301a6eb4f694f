"""T1: the recorded step masks against the law that the run says they follow.

Pairs of masks are taken so that no two pairs share a mask: their overlaps are independent draws
then, and the laws of sums and counts are exact. All of this tests the random generator and the
record, not the training: `observed_gates` and `dropped_directions` do that.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy
from numpy.typing import NDArray

from analyses.mask_theory import chance, needs
from analyses.mask_theory.comparison import (
    Comparison,
    NotTestableError,
    indicative,
    no_exceptions,
    within_limits,
)
from analyses.mask_theory.laws import Lattice, Law, law_of_sum
from analyses.mask_theory.prediction import Prediction, known, prediction
from analyses.mask_theory.record import Group, first_true
from subspace_lab.theory.mask_frequency import frequency_statistic
from subspace_lab.theory.mask_overlap import (
    coverage_pmf,
    equal_pairs_variance,
    expected_equal_pairs,
)

of_record = functools.partial(prediction, "T1", always=(needs.STEP_MASKS,), tests="masks drawn")
of_masks = functools.partial(of_record, always=(needs.STEP_MASKS, needs.INDEPENDENT_DRAWS))

NOT_INDEPENDENT = "successive masks are not independent draws"
NOT_OF_THEIR_OWN = "the modules do not have masks of their own in a step"


@of_record(
    "masks are the law's function",
    "the masks in use were not drawn from (seed, step, module) as the run says",
)
def recorded(group: Group) -> Comparison:
    """Each recorded mask is the pure function of (seed, step, module) that the law defines."""
    law = known(group.law)
    drawn = [
        [law.step_mask(step, name, group.rank) for name in group.names]
        for step in group.mask_steps.tolist()
    ]
    return no_exceptions((np.array(drawn) != known(group.masks)).any(-1))


@of_masks("kept directions, mean", "the share that the masks keep is not keep_prob")
def kept(group: Group) -> Comparison:
    """|M| has the mean q r."""
    pmf = _kept_pmf(group)
    if pmf.max() == 1:
        raise NotTestableError("the number of kept directions is fixed, and tested by its law")
    return chance.mean_of_counts(known(group.masks).sum(-1), pmf=pmf)


@of_masks("kept directions, law", "the counts of kept directions do not follow the law")
def kept_law(group: Group) -> Comparison:
    """|M| ~ Bin(r, q); exactly q r under an exact-k law."""
    counts, pmf = known(group.masks).sum(-1), _kept_pmf(group)
    if pmf.max() == 1:
        return no_exceptions(pmf[counts] == 0)
    return chance.distribution_of_counts(counts, pmf=pmf)


@of_masks(
    "keep frequency by direction",
    "some directions are kept more often than others",
    needs.EXCHANGEABLE,
    needs.SOME_DROPPED,
)
def frequency(group: Group) -> Comparison:
    """Every direction of every module is kept in q T of the T steps, on average."""
    masks, law = known(group.masks), known(group.law)
    q = law.keep_prob
    if len(masks) * min(q, 1 - q) < chance.MIN_EXPECTED:
        raise NotTestableError("there are too few masks for a chi-square test")
    statistic = frequency_statistic(masks, law)
    return chance.chi_square(
        statistic.value,
        freedom=statistic.freedom,
        variance=statistic.variance,
        samples=masks.size,
        effect=math.sqrt(q * (1 - q) / masks.size),
        unit="root mean square deviation of keep_prob over directions",
    )


def _overlap(
    of: str,
    if_it_fails: str,
    compare: Callable[..., Comparison] = chance.mean_of_counts,
    *,
    axis: int = 0,
    lag: int = 1,
) -> Prediction:
    """Predict |M and M'| of masks `lag` apart along an axis: Bin(r, q^2), or hypergeometric."""
    name = f"overlap {of}, {'mean' if compare is chance.mean_of_counts else 'law'}"

    @of_masks(name, if_it_fails)
    def overlap(group: Group) -> Comparison:
        first, second = disjoint_pairs(np.moveaxis(known(group.masks), axis, 0), lag=lag)
        return compare((first & second).sum(-1), pmf=_overlap_pmf(group))

    return overlap


overlap = _overlap("of next masks", NOT_INDEPENDENT)
lagged = _overlap("at lag 2", "masks two steps apart are not independent", lag=2)
overlap_law = _overlap("of next masks", NOT_INDEPENDENT, chance.distribution_of_counts)


@of_masks("Jaccard of next masks", NOT_INDEPENDENT, needs.EXCHANGEABLE, needs.SOME_DROPPED)
def jaccard(group: Group) -> Comparison:
    """Shared over united directions, pooled over pairs: sum |M and M'| / sum |M or M'|.

    Given the unions, the shared directions of Bernoulli masks are Bin(sum |M or M'|, q / (2 - q)).
    Where the size k of masks is fixed, |M or M'| = 2 k - |M and M'|: the ratio follows from the
    overlaps.
    """
    first, second = disjoint_pairs(known(group.masks), lag=1)
    shared, total = (first & second).sum(-1), int((first | second).sum())
    if not total:
        raise NotTestableError("there are no pairs of masks that keep anything")
    law = known(group.law)
    if not law.independent_gates:
        return _jaccard_of_fixed_sizes(group, shared)
    binomial = scipy.stats.binom(total, law.keep_prob / (2 - law.keep_prob))
    shares, basis = Law(binomial, 0, total, whole=True), "binomial quantiles"
    return chance.within_chance(shares, shared.sum(), basis=basis, samples=shared.size, per=total)


def _jaccard_of_fixed_sizes(group: Group, shared: NDArray[np.int64]) -> Comparison:
    united = 2 * int(_kept_pmf(group).argmax()) * shared.size
    law = law_of_sum(_overlap_pmf(group), shared.size)

    def ratio(overlap: float) -> float:
        return float(overlap / (united - overlap))

    low, high = map(ratio, law.limits())
    shift = max(law.caught)
    return within_limits(
        ratio(law.mean),
        ratio(shared.sum()),
        limits=(low, high),
        probability=law.probability(shared.sum()),
        power=ratio(law.mean + shift) - ratio(law.mean) if shift < united else shift,
        unit="of measured",
        basis="quantiles of a sum of draws",
        samples=shared.size,
    )


across = _overlap("of two modules", NOT_OF_THEIR_OWN, axis=1)
across_law = _overlap("of two modules", NOT_OF_THEIR_OWN, chance.distribution_of_counts, axis=1)


@of_masks("empty masks, count", "masks are empty more, or less, often than expected by chance")
def empty(group: Group) -> Comparison:
    """P(M empty) = (1 - q)^r."""
    probability = float(_kept_pmf(group)[0])
    return chance.count_of_events(~known(group.masks).any(-1), probability=probability)


@of_masks(
    "equal masks, pairs",
    "masks recur more, or less, often than expected by chance",
    needs.INDEPENDENT_GATES,
)
def equal(group: Group) -> Comparison:
    """Among T masks of a module C(T, 2) (q^2 + (1-q)^2)^r pairs are equal, on average."""
    masks = known(group.masks)
    steps, modules, rank = masks.shape
    if steps < 2:
        raise NotTestableError("there are fewer than two masks")
    equal = 0
    for module in range(modules):
        counts = np.unique(masks[:, module], axis=0, return_counts=True)[1]
        equal += (counts * (counts - 1) // 2).sum()
    q = known(group.law).keep_prob
    variance = modules * equal_pairs_variance(rank, keep_prob=q, steps=steps)
    return indicative(
        modules * expected_equal_pairs(rank, keep_prob=q, steps=steps),
        equal,
        tolerance=max(4 * math.sqrt(variance), 1),
        basis="four standard deviations: the count is skewed and has no simple law",
        samples=modules * math.comb(steps, 2),
    )


@of_masks(
    "steps until all were kept",
    "the last direction is first kept later, or earlier, than expected by chance",
    needs.INDEPENDENT_GATES,
    needs.SOME_DROPPED,
)
def coverage(group: Group) -> Comparison:
    """All r M directions have been kept at least once by step T."""
    masks = known(group.masks)
    directions = masks[0].size
    first = first_true(masks) + 1
    pmf = coverage_pmf(directions, keep_prob=known(group.law).keep_prob)
    law = Law(Lattice(pmf), 1, whole=True)
    if first.max() > len(masks) and len(masks) < law.limits()[1]:
        raise NotTestableError("the run is too short: some direction was not kept yet")
    basis = "quantiles of the slowest direction"
    return chance.within_chance(law, first.max(), basis=basis, samples=directions)


def disjoint_pairs(masks: NDArray[Any], *, lag: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Pairs of masks `lag` places of the first axis apart, no mask in two of them."""
    starts = np.arange(len(masks) - lag)
    starts = starts[starts // lag % 2 == 0]
    return masks[starts], masks[starts + lag]


def _kept_pmf(group: Group) -> NDArray[np.float64]:
    return known(group.law).kept_pmf(group.rank)


def _overlap_pmf(group: Group) -> NDArray[np.float64]:
    return known(group.law).overlap_pmf(group.rank)
