"""T1: the recorded step masks against the law that the run says they follow.

Pairs of masks are taken so that no two pairs share a mask: their overlaps are independent draws
then, and the laws of sums and counts are exact. All of this tests the random generator and the
record, not the training: `gates` and `dropped` do that.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from analyses.predictions.laws import Lattice, Law, law_of_sum
from analyses.predictions.rows import LEAST_EXPECTED, Prediction, Row, moments

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from analyses.predictions.group import Group

RECORDED = Prediction(
    "masks are the law's function",
    "T1",
    "masks drawn",
    "the masks in use were not drawn from (seed, step, module) as the run says",
)
KEPT = Prediction(
    "kept directions, mean", "T1", "masks drawn", "the masks keep another share than keep_prob"
)
KEPT_LAW = Prediction(
    "kept directions, law", "T1", "masks drawn", "the counts of kept directions follow no such law"
)
FREQUENCY = Prediction(
    "keep frequency by direction",
    "T1",
    "masks drawn",
    "some directions are kept more often than others",
)
OVERLAP = Prediction(
    "overlap of next masks, mean", "T1", "masks drawn", "successive masks are not independent draws"
)
OVERLAP_LAW = Prediction(
    "overlap of next masks, law", "T1", "masks drawn", "successive masks are not independent draws"
)
JACCARD = Prediction(
    "Jaccard of next masks", "T1", "masks drawn", "successive masks are not independent draws"
)
LAGGED = Prediction(
    "overlap at lag 2, mean", "T1", "masks drawn", "masks two steps apart are not independent"
)
ACROSS = Prediction(
    "overlap of two modules, mean",
    "T1",
    "masks drawn",
    "the modules do not have masks of their own in a step",
)
ACROSS_LAW = Prediction(
    "overlap of two modules, law",
    "T1",
    "masks drawn",
    "the modules do not have masks of their own in a step",
)
EMPTY = Prediction(
    "empty masks, count", "T1", "masks drawn", "masks are empty more, or less, often than by chance"
)
EQUAL = Prediction(
    "equal masks, pairs", "T1", "masks drawn", "masks come back more, or less, often than by chance"
)
COVERAGE = Prediction(
    "steps until all were kept",
    "T1",
    "masks drawn",
    "some direction waits longer, or shorter, than by chance",
)


def recorded(group: Group) -> Iterator[Row]:
    """Each recorded mask is the pure function of (seed, step, module) that the law defines."""
    import numpy as np

    if group.masks is None or group.law is None:
        return
    drawn = np.array(
        [
            [group.law.step_mask(step, name, group.rank) for name in group.names]
            for step in group.mask_steps.tolist()
        ]
    )
    yield RECORDED.never((drawn != group.masks).any(-1))


def kept(group: Group) -> Iterator[Row]:
    """|M| ~ Bin(r, q), mean q r; exactly q r of an exact-k law."""
    if group.masks is None:
        return
    counts = group.masks.sum(-1)
    mean, variance = moments(group.kept_pmf)
    if variance:
        yield from KEPT.mean_count(counts, pmf=group.kept_pmf)
        yield from KEPT_LAW.law(counts, pmf=group.kept_pmf)
    else:
        yield KEPT_LAW.never(counts != mean)


def frequency(group: Group) -> Iterator[Row]:
    """Every direction of every module is kept in Bin(T, q) of the T steps.

    The sum of (count - T q)² / (T q (1 - q)) has the chi-square's mean, one for each free
    direction. Its variance is that of binomial (exact-k: of correlated) counts,

        M r (2 + (1 - 6 q (1 - q)) / (T q (1 - q))),        2 M (r - 1) (1 - 1 / T) for exact-k.
    """
    import math

    if group.masks is None or group.law is None:
        return
    steps, modules, rank = group.masks.shape
    q = group.law.keep_prob
    spread = q * (1 - q)
    if steps * min(q, 1 - q) < LEAST_EXPECTED:
        return
    statistic = ((group.masks.sum(0) - steps * q) ** 2).sum() / (steps * spread)
    freedom = modules * rank
    variance = freedom * (2 + (1 - 6 * spread) / (steps * spread))
    if not group.law.independent_gates:  # the frequencies of a module sum to q r T
        statistic *= (rank - 1) / rank
        freedom -= modules
        variance = 2 * freedom * (1 - 1 / steps)
    yield FREQUENCY.chi_square(
        statistic,
        freedom=freedom,
        variance=variance,
        samples=group.masks.size,
        effect=math.sqrt(spread / group.masks.size),
        unit="root mean square deviation of keep_prob over directions",
    )


def successive(group: Group) -> Iterator[Row]:
    """|M_t and M_{t+1}| ~ Bin(r, q^2), or hypergeometric, at any lag; Jaccard index q / (2 - q)."""
    if group.masks is None:
        return
    for prediction, lag in ((OVERLAP, 1), (LAGGED, 2)):
        first, second = disjoint_pairs(group.masks, lag=lag)
        yield from prediction.mean_count((first & second).sum(-1), pmf=group.overlap_pmf)
    first, second = disjoint_pairs(group.masks, lag=1)
    yield from OVERLAP_LAW.law((first & second).sum(-1), pmf=group.overlap_pmf)
    yield from jaccard(group, first, second)


def jaccard(group: Group, first: NDArray[np.bool_], second: NDArray[np.bool_]) -> Iterator[Row]:
    """Shared over united directions, pooled over pairs: sum |M and M'| / sum |M or M'|.

    Given the unions, the shared directions of Bernoulli masks are Bin(sum |M or M'|, q / (2 - q)).
    With exact-k masks |M or M'| = 2 k - |M and M'|, so that the ratio follows from the overlaps.
    """
    assert group.law is not None
    shared, union = (first & second).sum(-1), (first | second).sum(-1)
    total = int(union.sum())
    if not total or group.law.keep_prob == 1:
        return
    if group.law.independent_gates:
        from scipy import stats

        q = group.law.keep_prob
        law = Law(stats.binom(total, q / (2 - q)), 0, total, whole=True)
        yield JACCARD.follows(
            law, int(shared.sum()), basis="binomial quantiles", samples=shared.size, per=total
        )
        return
    united = 2 * group.kept_pmf.argmax() * shared.size
    law = law_of_sum(group.overlap_pmf, shared.size)

    def ratio(overlap: float) -> float:
        return float(overlap / (united - overlap))

    low, high = (ratio(limit) for limit in law.limits())
    shift = max(law.caught_below, law.caught_above)
    yield JACCARD.within(
        ratio(law.mean),
        ratio(int(shared.sum())),
        limits=(low, high),
        probability=law.probability(int(shared.sum())),
        power=ratio(law.mean + shift) - ratio(law.mean) if shift < united else shift,
        unit="of measured",
        basis="quantiles of a sum of draws",
        samples=shared.size,
    )


def across_modules(group: Group) -> Iterator[Row]:
    """Masks of two modules in one step overlap as two independent draws do."""
    if group.masks is None:
        return
    even = group.masks.shape[1] // 2 * 2
    shared = (group.masks[:, 0:even:2] & group.masks[:, 1:even:2]).sum(-1)
    yield from ACROSS.mean_count(shared, pmf=group.overlap_pmf)
    yield from ACROSS_LAW.law(shared, pmf=group.overlap_pmf)


def empty(group: Group) -> Iterator[Row]:
    """P(M empty) = (1 - q)^r."""
    if group.masks is not None:
        yield EMPTY.count(~group.masks.any(-1), probability=float(group.kept_pmf[0]))


def equal_pairs(group: Group) -> Iterator[Row]:
    """Among T masks of a module C(T, 2) (q^2 + (1-q)^2)^r pairs are equal, on average.

    Pairs that share a mask are correlated unless q = 1/2: the variance counts them.
    """
    import math

    import numpy as np

    from subspace_lab.theory.mask_overlap import expected_equal_pairs, mask_collision_rate

    if group.masks is None or group.law is None or not group.law.independent_gates:
        return
    steps, modules, rank = group.masks.shape
    q = group.law.keep_prob
    if steps < 2:
        return
    found = 0
    for module in range(modules):
        counts = np.unique(group.masks[:, module], axis=0, return_counts=True)[1]
        found += int((counts * (counts - 1) // 2).sum())
    pair, triple = mask_collision_rate(rank, keep_prob=q), (q**3 + (1 - q) ** 3) ** rank
    variance = math.comb(steps, 2) * pair * (1 - pair)
    variance += steps * (steps - 1) * (steps - 2) * (triple - pair**2)
    yield EQUAL.indicative(
        modules * expected_equal_pairs(rank, keep_prob=q, steps=steps),
        found,
        scale=max(4 * math.sqrt(modules * variance), 1),
        why="four standard deviations: the count is skewed and has no simple law",
        samples=modules * math.comb(steps, 2),
    )


def coverage(group: Group) -> Iterator[Row]:
    """All R = r M directions have been kept at least once by step T, P(T <= t) = (1 - (1-q)^t)^R.

    Says nothing of a run that is too short to tell.
    """
    import math

    import numpy as np

    if group.masks is None or group.law is None or not group.law.independent_gates:
        return
    q, directions = group.law.keep_prob, group.masks[0].size
    if q == 1:
        return
    ever = group.masks.any(0)
    first = np.where(ever, group.masks.argmax(0), len(group.masks)) + 1
    last = math.ceil(math.log(1e-18 / directions) / math.log1p(-q))
    cdf = (-np.expm1(np.arange(last + 1) * math.log1p(-q))) ** directions
    law = Law(Lattice(np.diff(cdf, prepend=0)), 1, whole=True)
    if ever.all() or len(group.masks) >= law.limits()[1]:
        yield COVERAGE.follows(
            law, int(first.max()), basis="quantiles of the slowest direction", samples=directions
        )


def disjoint_pairs(
    masks: NDArray[np.bool_], *, lag: int
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Pairs of masks `lag` steps apart, no mask in two of them."""
    import numpy as np

    starts = np.arange(len(masks) - lag)
    starts = starts[starts // lag % 2 == 0]
    return masks[starts], masks[starts + lag]


PREDICTIONS = (recorded, kept, frequency, successive, across_modules, empty, equal_pairs, coverage)
