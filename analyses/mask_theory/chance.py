"""Comparisons of random numbers with the laws of their statistics."""

from __future__ import annotations

import math

import numpy as np
import scipy
from numpy.typing import ArrayLike, NDArray

from analyses.mask_theory.comparison import Comparison, NotTestableError, within_limits
from analyses.mask_theory.laws import LEVEL, POWER, Law, law_of_cumulants, law_of_sum

MIN_EXPECTED = 5.0  # in a cell of a chi-square test
FEW_CELLS = 10  # of a chi-square test, which is then one-sided


def within_chance(
    law: Law,
    measured: float,
    *,
    basis: str,
    samples: int,
    per: float = 1.0,
    caught: tuple[float, float] | None = None,
) -> Comparison:
    """Compare with a random number by its law.

    Args:
        law: of the statistic.
        measured: the statistic.
        basis: where the law comes from.
        samples: as in `Comparison`.
        per: the comparison shows statistic / per (a mean in place of a sum).
        caught: shifts that are noticed, down and up; None: those of `law`.
    """
    low, high = law.limits()
    below, above = (shift / per for shift in caught or law.caught)
    power, unit = max(below, above), "of measured"
    if math.isinf(below) != math.isinf(above):  # noticed in one direction only
        power = min(below, above)
        unit += f", {'up' if power == above else 'down'}wards only"
    return within_limits(
        law.mean / per,
        measured / per,
        limits=(low / per, high / per),
        probability=law.probability(measured),
        power=power,
        unit=unit,
        basis=basis,
        samples=samples,
    )


def mean_of_counts(counts: ArrayLike, *, pmf: NDArray[np.float64]) -> Comparison:
    """Compare the mean of independent whole numbers by the law P(0), P(1), ... of one.

    Raises:
        NotTestableError: if there is no draw.
    """
    draws = np.asarray(counts)
    if not draws.size:
        raise NotTestableError("there are no draws")
    return within_chance(
        law_of_sum(pmf, draws.size),
        int(draws.sum()),
        basis="quantiles of a sum of draws",
        samples=draws.size,
        per=draws.size,
    )


def mean_of_draws(
    values: ArrayLike, *, expected: float, variance: float, third: float
) -> Comparison:
    """Compare the mean of independent draws by the first three cumulants of their law.

    `variance` and `third` (the central moment) are of one draw, averaged where draws differ.

    Raises:
        NotTestableError: if there is no draw, or nothing varies.
    """
    draws = np.asarray(values, dtype=float)
    n = draws.size
    if not n or not variance > 0:
        raise NotTestableError("there are no draws that vary")
    law = law_of_cumulants(expected, variance / n, third / n**2)
    basis = "quantiles by mean, variance and skewness"
    return within_chance(law, float(draws.mean()), basis=basis, samples=n)


def mean_by_student(values: ArrayLike, *, expected: float) -> Comparison:
    """Compare the mean of independent draws by Student's t.

    Raises:
        NotTestableError: if there are fewer than two draws, or all are equal.
    """
    draws = np.asarray(values, dtype=float)
    n = draws.size
    if n < 2 or not (error := draws.std(ddof=1) / math.sqrt(n)) > 0:
        raise NotTestableError("it takes two draws that differ")
    law = Law(scipy.stats.t(n - 1, loc=expected, scale=error))
    basis = "quantiles of Student's t"
    return within_chance(law, float(draws.mean()), basis=basis, samples=n)


def count_of_events(events: ArrayLike, *, probability: float) -> Comparison:
    """Compare how many of N independent events happen, each with `probability`."""
    happened = np.asarray(events)
    n = happened.size
    law = Law(scipy.stats.binom(n, probability), 0, n, whole=True)
    low, high = law.limits()
    above = _caught_above(n, high) - law.mean
    below = math.inf
    if low > 0:
        below = law.mean - n * scipy.stats.beta.ppf(1 - POWER, low, n - low + 1)
    return within_chance(
        law, happened.sum(), basis="binomial quantiles", samples=n, caught=(below, above)
    )


def at_most(events: ArrayLike, *, probability: float, why: str) -> Comparison:
    """Predict that of N independent events no more happen than with `probability` each.

    `why` says where that bound comes from.
    """
    happened = np.asarray(events)
    n, measured = happened.size, int(happened.sum())
    law = scipy.stats.binom(n, probability)
    high, expected = float(law.isf(LEVEL)), n * probability
    return within_limits(
        expected,
        measured,
        limits=(0, high),
        probability=float(law.sf(measured - 1)),
        power=_caught_above(n, high) - expected,
        unit="of measured, upwards only",
        basis=f"at most: {why}; binomial quantile",
        samples=n,
    )


def distribution_of_counts(counts: ArrayLike, *, pmf: NDArray[np.float64]) -> Comparison:
    """Compare the law P(0), P(1), ... of independent whole numbers by Pearson's chi-square.

    Neighbouring values are pooled until at least 5 draws are expected in each cell. With k cells of
    probabilities p_j and n draws the statistic has mean k - 1 and variance
    2 (k - 1) + (sum 1 / p_j - k^2 - 2 k + 2) / n (Cramér 1946, section 30.1).

    Raises:
        NotTestableError: if there are too few draws for two cells.
    """
    draws = np.asarray(counts).ravel()
    n = draws.size
    cells, gathered = [], np.zeros(2)
    for pair in zip(pmf * n, np.bincount(draws, minlength=len(pmf)), strict=True):
        gathered = gathered + pair
        if gathered[0] >= MIN_EXPECTED:
            cells.append(gathered)
            gathered = np.zeros(2)
    if len(cells) < 2:
        raise NotTestableError(f"{n} draws are too few for a chi-square test")
    cells[-1] = cells[-1] + gathered
    e, o = np.array(cells).T
    k = len(cells)
    return chi_square(
        ((o - e) ** 2 / e).sum(),
        freedom=k - 1,
        variance=2 * (k - 1) + float((n / e).sum() - k**2 - 2 * k + 2) / n,
        samples=n,
        effect=1 / math.sqrt(n),
        unit="root mean square relative deviation of probabilities",
    )


def chi_square(
    statistic: float, *, freedom: int, variance: float, samples: int, effect: float, unit: str
) -> Comparison:
    """Compare a chi-square statistic, by a multiple of a chi-square law of this variance.

    Args:
        statistic: the statistic.
        freedom: its degrees of freedom, which is its mean.
        variance: its variance, which for few draws is not quite 2 x freedom.
        samples: as in `Comparison`.
        effect: the size of effect that adds 1 to the mean.
        unit: what the size of effect is.
    """
    scale = variance / (2 * freedom)
    law = Law(scipy.stats.chi2(freedom / scale, scale=scale), 0)
    low, high = law.limits()
    if freedom < FEW_CELLS:  # counts that are as expected make 0, more often than the law says
        low = 0.0

    def missed(noncentrality: float) -> float:
        caught = scipy.stats.ncx2.sf(high / scale, freedom / scale, noncentrality / scale)
        return float(caught) - POWER

    return within_limits(
        freedom,
        statistic,
        limits=(low, high),
        probability=law.probability(statistic) if statistic > freedom or low else 1.0,
        power=effect * math.sqrt(scipy.optimize.brentq(missed, 1e-6, 100 * (high + 1))),
        unit=unit,
        basis=f"chi-square quantiles, {freedom} degrees of freedom",
        samples=samples,
    )


def _caught_above(n: int, high: float) -> float:
    """Smallest mean count of n events that exceeds `high` with probability 80 %; inf: none."""
    return float(n * scipy.stats.beta.ppf(POWER, high + 1, n - high)) if high < n else math.inf
