"""Laws of the statistics that are tested: what chance allows, and what it does not hide.

A `Law` is a frozen distribution of scipy's (or a `Lattice`) with the values that its statistic can
take. From it follow the limits of agreement, the probability of a deviation as large as the
one measured, and the power: the smallest shift that leaves the limits in 80 % of runs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import scipy
from numpy.typing import NDArray

LEVEL = 1e-4
"""Probability with which a correct run leaves the limits of one prediction."""

POWER = 0.8
MAX_OUTCOMES = 2**18  # of a lattice that is summed exactly


@dataclass(frozen=True)
class Lattice:
    """A law on 0, 1, ..., N, given by its probabilities; the methods are scipy's."""

    pmf: NDArray[np.float64]

    @cached_property
    def _below(self) -> NDArray[np.float64]:
        return np.cumsum(self.pmf)

    @cached_property
    def _above(self) -> NDArray[np.float64]:
        """P(X > x), summed from the far end: small tails keep their digits."""
        return np.append(np.cumsum(self.pmf[::-1])[::-1][1:], 0.0)

    def mean(self) -> float:
        """Mean of the law."""
        return float(self.pmf @ np.arange(len(self.pmf)))

    def cdf(self, value: float) -> float:
        """P(X <= value)."""
        return float(self._below[min(int(value), len(self.pmf) - 1)]) if value >= 0 else 0.0

    def sf(self, value: float) -> float:
        """P(X > value)."""
        return float(self._above[min(int(value), len(self.pmf) - 1)]) if value >= 0 else 1.0

    def ppf(self, probability: float) -> float:
        """Smallest x with P(X <= x) >= probability."""
        return min(float(np.searchsorted(self._below, probability)), len(self.pmf) - 1)

    def isf(self, probability: float) -> float:
        """Smallest x with P(X > x) <= probability."""
        return float(np.flatnonzero(self._above <= probability)[0])


@dataclass(frozen=True)
class Law:
    """The law of a statistic.

    Attributes:
        of: frozen distribution with mean, cdf, sf, ppf and isf.
        minimum: smallest value that the statistic can take.
        maximum: largest value that it can take.
        whole: whether it takes whole numbers only.
    """

    of: Any
    minimum: float = -math.inf
    maximum: float = math.inf
    whole: bool = False

    @property
    def mean(self) -> float:
        """Mean of the statistic."""
        return float(self.of.mean())

    def limits(self, level: float = LEVEL) -> tuple[float, float]:
        """Limits that the statistic leaves with probability `level` at most, half on each side."""
        low, high = float(self.of.ppf(level / 2)), float(self.of.isf(level / 2))
        return max(low, self.minimum), min(high, self.maximum)

    def probability(self, value: float) -> float:
        """Probability of a deviation as large as this one, twice the smaller of the two tails."""
        if self.whole:
            value = round(value)
        below = float(self.of.cdf(value))
        above = float(self.of.sf(value - 1 if self.whole else value))
        return min(1.0, 2 * min(below, above))

    @property
    def caught(self) -> tuple[float, float]:
        """Least shifts down and up that leave the limits with probability 80 %; inf: none can."""
        low, high = self.limits()
        down = float(self.of.ppf(POWER)) - low + self.whole
        up = high - float(self.of.ppf(1 - POWER)) + self.whole
        return (
            down if self.mean - down >= self.minimum else math.inf,
            up if self.mean + up <= self.maximum else math.inf,
        )


def law_of_sum(pmf: NDArray[np.float64], draws: int) -> Law:
    """Law of the sum of independent draws from P(0), P(1), ...

    Exact by the discrete Fourier transform; for very many draws by the first three cumulants.

    Raises:
        ValueError: if there is no draw.
    """
    if draws < 1:
        raise ValueError(f"a sum needs at least one draw, not {draws}")
    outcomes = draws * (len(pmf) - 1)
    if outcomes < MAX_OUTCOMES:
        power = np.fft.rfft(pmf, outcomes + 1) ** draws
        summed = np.fft.irfft(power, outcomes + 1).clip(min=0)
        return Law(Lattice(summed / summed.sum()), 0, outcomes, whole=True)
    values = np.arange(len(pmf))
    mean = float(pmf @ values)
    variance, third = (float(pmf @ (values - mean) ** power) for power in (2, 3))
    law = law_of_cumulants(draws * mean, draws * variance, draws * third)
    return Law(law.of, 0, outcomes, whole=True)


def law_of_cumulants(mean: float, variance: float, third: float) -> Law:
    """The law with these cumulants that is a shifted gamma (Pearson's type III): normal if third 0.

    It is exact for sums of squares of normal numbers, and close in the tails for sums of many
    terms that are bounded or nearly so.
    """
    deviation = math.sqrt(variance)
    return Law(scipy.stats.pearson3(third / deviation**3, loc=mean, scale=deviation))
