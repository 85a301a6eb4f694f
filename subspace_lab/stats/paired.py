"""Paired comparisons of two configurations, seed by seed."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass

import numpy as np
import scipy
from numpy.typing import ArrayLike

from subspace_lab.stats.intervals import Interval, mean_interval

EXACT_UP_TO = 16  # pairs; 2^16 sign patterns
RANDOM_PATTERNS = 99_999


@dataclass(frozen=True)
class SignFlipTest:
    """P-value of the sign-flip test, and whether all sign patterns were enumerated."""

    p_value: float
    exact: bool


@dataclass(frozen=True)
class PairedDifference:
    """Second minus first, over the pairs that both have.

    Attributes:
        difference: mean difference with its t interval.
        test: two-sided sign-flip test of "no difference".
        pairs: the keys (seeds) that were paired, sorted.
    """

    difference: Interval
    test: SignFlipTest
    pairs: tuple[Hashable, ...]


def paired_difference(
    first: Mapping[Hashable, float], second: Mapping[Hashable, float], *, level: float = 0.95
) -> PairedDifference:
    """Mean difference second - first over common seeds, with interval and test.

    Args:
        first: value by seed.
        second: value by seed.
        level: coverage of the interval.

    Raises:
        ValueError: if no seed is in both.

    >>> paired = paired_difference({0: 1.0, 1: 2.0, 2: 2.5}, {0: 1.5, 1: 3.0, 2: 3.0})
    >>> round(paired.difference.estimate, 3), paired.test.p_value
    (0.667, 0.25)
    """
    pairs = tuple(sorted(first.keys() & second.keys(), key=str))
    if not pairs:
        raise ValueError("the two configurations have no seed in common")
    differences = np.array([second[pair] - first[pair] for pair in pairs])
    return PairedDifference(
        mean_interval(differences, level=level), sign_flip_test(differences), pairs
    )


def sign_flip_test(differences: ArrayLike) -> SignFlipTest:
    """Two-sided permutation test that differences (n,) are symmetric around 0 (Fisher 1935).

    nan where a difference is.

    Under the null the sign of each difference is a fair coin. Up to 16 differences all 2^n sign
    patterns are enumerated, so the smallest p-value is 2 / 2^n: 0.03 for six seeds.

    >>> sign_flip_test([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]).p_value
    0.03125
    """
    sample = np.asarray(differences, dtype=np.float64)
    if np.isnan(sample).any():
        return SignFlipTest(float("nan"), exact=True)
    if len(sample) == 1:  # both signs are as extreme; SciPy takes no sample of one
        return SignFlipTest(1.0, exact=True)
    exact = len(sample) <= EXACT_UP_TO
    result = scipy.stats.permutation_test(
        (sample, np.zeros_like(sample)),
        lambda x, y, axis: np.mean(x - y, axis=axis),
        permutation_type="samples",
        n_resamples=2**EXACT_UP_TO if exact else RANDOM_PATTERNS,
        vectorized=True,
        batch=4096,
        rng=np.random.default_rng(0),
    )
    return SignFlipTest(float(result.pvalue), exact)
