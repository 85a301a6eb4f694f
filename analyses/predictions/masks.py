"""T1: the recorded step masks against the law that the run says they follow.

Laws of pairs are tested on pairs of which no two share a mask: the draws are independent then, and
chance is that of the law. Means are taken over all pairs, with their correlation counted.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from analyses.predictions.rows import LEAST_EXPECTED, LEVEL, Prediction, Row, moments

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from analyses.predictions.group import Group

RECORDED = Prediction(
    "masks are the law's function",
    "T1",
    "the masks in use were not drawn from (seed, step, module) as the run says",
)
KEPT = Prediction("kept directions, mean", "T1", "the masks keep another share than keep_prob")
KEPT_LAW = Prediction(
    "kept directions, law", "T1", "the counts of kept directions follow no such law"
)
FREQUENCY = Prediction(
    "keep frequency by direction", "T1", "some directions are kept more often than others"
)
OVERLAP = Prediction(
    "overlap of next masks, mean", "T1", "successive masks are not independent draws"
)
OVERLAP_LAW = Prediction(
    "overlap of next masks, law", "T1", "successive masks are not independent draws"
)
JACCARD = Prediction("Jaccard of next masks", "T1", "successive masks are not independent draws")
LAGGED = Prediction("overlap at lag 2, mean", "T1", "masks two steps apart are not independent")
ACROSS = Prediction(
    "overlap of two modules, mean", "T1", "the modules do not have masks of their own in a step"
)
ACROSS_LAW = Prediction(
    "overlap of two modules, law", "T1", "the modules do not have masks of their own in a step"
)
EMPTY = Prediction(
    "empty masks, count", "T1", "masks are empty more, or less, often than by chance"
)
EQUAL = Prediction(
    "equal masks, pairs", "T1", "masks come back more, or less, often than by chance"
)
COVERAGE = Prediction(
    "steps until all were kept", "T1", "some direction waits longer, or shorter, than by chance"
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
    yield KEPT.mean(counts, expected=mean, variance=variance)
    if variance:
        yield from KEPT_LAW.law(counts, pmf=group.kept_pmf)
    else:
        yield KEPT_LAW.never(counts != mean)


def frequency(group: Group) -> Iterator[Row]:
    """Every direction of every module is kept in Bin(T, q) of the T steps."""
    if group.masks is None or group.law is None:
        return
    steps, modules, rank = group.masks.shape
    q = group.law.keep_prob
    if steps * min(q, 1 - q) < LEAST_EXPECTED:
        return
    statistic = ((group.masks.sum(0) - steps * q) ** 2).sum() / (steps * q * (1 - q))
    freedom = modules * rank
    if group.law.sampling == "exact-k":  # the frequencies of a module sum to q r T
        statistic *= (rank - 1) / rank
        freedom -= modules
    yield FREQUENCY.chi_square(statistic, freedom=freedom, samples=group.masks.size)


def successive(group: Group) -> Iterator[Row]:
    """|M_t and M_{t+1}| ~ Bin(r, q^2), or hypergeometric; Jaccard index q / (2 - q); any lag."""
    if group.masks is None:
        return
    for prediction, lag in ((OVERLAP, 1), (LAGGED, 2)):
        if len(group.masks) > lag:
            shared = (group.masks[lag:] & group.masks[:-lag]).sum(-1)
            mean, variance = _chained_moments(group, pairs=len(shared), lag=lag)
            yield prediction.mean(shared, expected=mean, variance=variance)
    first, second = disjoint_pairs(group.masks, lag=1)
    if len(first):
        yield from OVERLAP_LAW.law((first & second).sum(-1), pmf=group.overlap_pmf)
        yield _jaccard(group, first, second)


def across_modules(group: Group) -> Iterator[Row]:
    """Masks of two modules in one step overlap as two independent draws do."""
    if group.masks is None or group.masks.shape[1] < 2:
        return
    even = group.masks.shape[1] // 2 * 2
    shared = (group.masks[:, 0:even:2] & group.masks[:, 1:even:2]).sum(-1)
    mean, variance = moments(group.overlap_pmf)
    yield ACROSS.mean(shared, expected=mean, variance=variance)
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
    from scipy import stats

    from subspace_lab.theory.mask_overlap import expected_equal_pairs, mask_collision_rate

    if group.masks is None or group.law is None or group.law.sampling != "bernoulli":
        return
    steps, modules, rank = group.masks.shape
    q = group.law.keep_prob
    if steps < 2:
        return
    found = 0
    for module in range(modules):
        counts = np.unique(group.masks[:, module], axis=0, return_counts=True)[1]
        found += int((counts * (counts - 1) // 2).sum())
    expected = modules * expected_equal_pairs(rank, keep_prob=q, steps=steps)
    pair, triple = mask_collision_rate(rank, keep_prob=q), (q**3 + (1 - q) ** 3) ** rank
    variance = math.comb(steps, 2) * pair * (1 - pair)
    variance += steps * (steps - 1) * (steps - 2) * (triple - pair**2)
    few = stats.poisson.isf(LEVEL, expected) - expected  # where equal pairs are rare
    yield EQUAL.drawn(
        expected,
        found,
        tolerance=max(4 * math.sqrt(modules * variance), few),
        basis=f"4 standard errors, or the Poisson quantile at {LEVEL:g}",
        samples=modules * math.comb(steps, 2),
    )


def coverage(group: Group) -> Iterator[Row]:
    """All R = r M directions have been kept at least once by step T, E T = sum [1-(1-(1-q)^t)^R].

    Says nothing of a run that is too short to tell.
    """
    import math

    import numpy as np

    from subspace_lab.theory.mask_overlap import coverage_time

    if group.masks is None or group.law is None or group.law.sampling != "bernoulli":
        return
    q, directions = group.law.keep_prob, group.masks[0].size
    ever = group.masks.any(0)
    first = np.where(ever, group.masks.argmax(0), len(group.masks)) + 1

    def quantile(level: float) -> float:
        if q == 1:
            return 1.0
        return math.ceil(math.log1p(-math.exp(math.log(level) / directions)) / math.log1p(-q))

    expected = coverage_time(directions, keep_prob=q)
    low, high = quantile(LEVEL / 2), quantile(1 - LEVEL / 2)
    if ever.all() or len(group.masks) >= high:
        yield COVERAGE.drawn(
            expected,
            int(first.max()),
            tolerance=max(expected - low, high - expected),
            basis=f"quantiles of the law at {LEVEL:g}",
            samples=directions,
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


def _chained_moments(group: Group, *, pairs: int, lag: int) -> tuple[float, float]:
    """Mean of the overlaps of all pairs (t, t + lag), and their variance per pair.

    Neighbouring pairs share a mask, which correlates Bernoulli overlaps: r (q^3 - q^4). Exact-k
    overlaps are independent, as that of M with a fresh mask depends on the size of M only.
    """
    assert group.law is not None
    mean, variance = moments(group.overlap_pmf)
    if group.law.sampling == "bernoulli":
        q = group.law.keep_prob
        variance += 2 * max(pairs - lag, 0) / pairs * group.rank * (q**3 - q**4)
    return mean, variance


def _jaccard(group: Group, first: NDArray[np.bool_], second: NDArray[np.bool_]) -> Row:
    import numpy as np

    from subspace_lab.theory.mask_overlap import jaccard_moments

    assert group.law is not None
    shared, union = (first & second).sum(-1), (first | second).sum(-1)
    present = union > 0
    found = shared[present] / union[present]
    if group.law.sampling == "exact-k":
        k = group.law.kept_exactly(group.rank)
        overlap = np.arange(group.rank + 1)
        mean, variance = moments(group.overlap_pmf, overlap / np.maximum(2 * k - overlap, 1))
    else:
        law = jaccard_moments(group.rank, keep_prob=group.law.keep_prob)
        mean, variance = law.mean_nonempty, law.variance_nonempty
    return JACCARD.mean(found, expected=mean, variance=variance)
