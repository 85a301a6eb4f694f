"""Intervals around means and accuracies."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import scipy
from jaxtyping import Float
from numpy.typing import ArrayLike

ROUNDING = 1e-12
"""Spread of accuracies, or of mean losses in nats, that double precision alone can make."""

Numbers = float | Float[np.ndarray, " *batch"]


@dataclass(frozen=True)
class Interval:
    """An estimate with its interval [low, high].

    Attributes:
        estimate: the point estimate (...).
        low: lower end; nan where the sample is too small for one (...).
        high: upper end (...).
        level: the interval's coverage, such as 0.95.
        count: how many values (or trials) it rests on (...).
    """

    estimate: Numbers
    low: Numbers
    high: Numbers
    level: float
    count: int | np.ndarray[Any, np.dtype[np.int64]]


def mean_interval(values: ArrayLike, *, level: float = 0.95) -> Interval:
    """Mean and Student's t interval along the last axis, mean +- t_{n-1} s / sqrt(n).

    Exact for independent normal values. nan entries are left out; with fewer than two values the
    interval is nan.

    Args:
        values: samples (..., n).
        level: coverage.

    >>> interval = mean_interval([1.0, 2.0, 3.0])
    >>> interval.estimate, round(interval.low, 3), round(interval.high, 3)
    (2.0, -0.484, 4.484)
    """
    sample = np.asarray(values, dtype=np.float64)
    present = ~np.isnan(sample)
    count = present.sum(-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.where(present, sample, 0.0).sum(-1) / count
        squares = np.where(present, (sample - mean[..., None]) ** 2, 0.0).sum(-1)
        error = np.sqrt(squares / (count - 1) / count)
        half = scipy.special.stdtrit(count - 1, (1 + level) / 2) * error
    return Interval(
        _plain(mean), _plain(mean - half), _plain(mean + half), level=level, count=_plain(count)
    )


def ratio_interval(
    numerators: ArrayLike, denominators: ArrayLike, *, level: float = 0.95
) -> Interval:
    """Ratio of means, such as nats per token over examples of unequal length, with an interval.

    R = sum x_i / sum y_i, and by linearization R +- t_{n-1} s / (sqrt(n) mean y), where s is the
    standard deviation of x_i - R y_i (Cochran 1977, Sampling Techniques, equation 2.46). It covers
    the sampling of the n pairs; with fewer than two the interval is nan.

    Args:
        numerators: samples (..., n).
        denominators: of the same n, positive (n,).
        level: coverage.

    >>> interval = ratio_interval([1.0, 2.0, 6.0], [1, 2, 3])
    >>> interval.estimate, round(interval.low, 3), round(interval.high, 3)
    (1.5, -0.143, 3.143)
    """
    x, y = np.asarray(numerators, dtype=np.float64), np.asarray(denominators, dtype=np.float64)
    ratio = x.sum(-1) / y.sum()
    residuals = mean_interval((x - ratio[..., None] * y) / y.mean(), level=level)
    half = residuals.high - residuals.estimate
    return Interval(
        _plain(ratio), _plain(ratio - half), _plain(ratio + half), level=level, count=len(y)
    )


def accuracy_interval(correct: int, total: int, *, level: float = 0.95) -> Interval:
    """Wilson's score interval for an accuracy (Wilson 1927, JASA 22(158)).

    It covers the sampling of test examples only, not that of training seeds.

    Args:
        correct: correct answers.
        total: examples.
        level: coverage.

    Raises:
        ValueError: if correct is not in 0..total, or total is 0.

    >>> interval = accuracy_interval(8, 10)
    >>> round(interval.low, 3), round(interval.high, 3)
    (0.49, 0.943)
    """
    if not 0 <= correct <= total or total == 0:
        raise ValueError(f"{correct} correct answers of {total} examples")
    share, z = correct / total, float(scipy.special.ndtri((1 + level) / 2))
    scale = 2 * (total + z**2)
    center = (2 * correct + z**2) / scale
    half = z / scale * math.sqrt(4 * correct * (1 - share) + z**2)
    low = center - half if correct else 0.0
    high = center + half if correct < total else 1.0
    return Interval(share, low, high, level, total)


def accuracy_over_seeds(values: ArrayLike, *, examples: int, level: float = 0.95) -> Interval:
    """Mean accuracy of n seeds with Student's t interval over seeds, cut off at 0 and 1.

    Where all seeds score the same, or one scores 0 or 1, their spread says nothing; the interval is
    then Wilson's for one seed's examples.

    Args:
        values: accuracies (n,), in [0, 1].
        examples: how many examples each seed was scored on.
        level: coverage.

    >>> interval = accuracy_over_seeds([0.0, 0.0, 0.0], examples=40)
    >>> interval.estimate, interval.low, round(interval.high, 3)
    (0.0, 0.0, 0.088)
    """
    interval = mean_interval(values, level=level)
    if interval.estimate in (0, 1) or all_alike(values):
        correct = round(float(interval.estimate) * examples)
        wilson = accuracy_interval(correct, examples, level=level)
        return replace(interval, low=wilson.low, high=wilson.high)
    low, high = np.clip([interval.low, interval.high], 0, 1).tolist()
    return replace(interval, low=low, high=high)


def all_alike(values: ArrayLike) -> bool:
    """Tell whether several values are the same up to rounding, so that their spread says nothing.

    >>> all_alike([0.1 + 0.2, 0.3]), all_alike([0.3, 0.4]), all_alike([0.3])
    (True, False, False)
    """
    sample = np.asarray(values, dtype=np.float64)
    return sample.size > 1 and bool(np.ptp(sample) < ROUNDING)


def spread_text(interval: Interval, form: str, *, scale: float = 1.0) -> str:
    """Write an interval after its estimate: "± half its width", or its ends if it is lopsided.

    Args:
        interval: of one estimate; empty where it has no ends.
        form: format of a number.
        scale: what the numbers are multiplied by.

    >>> spread_text(Interval(0.5, 0.4, 0.6, 0.95, 3), ".1f", scale=100)
    '± 10.0'
    >>> spread_text(Interval(0.0, 0.0, 0.0876, 0.95, 3), ".1f", scale=100)
    '[0.0, 8.8]'
    """
    estimate, low, high = (
        scale * float(value) for value in (interval.estimate, interval.low, interval.high)
    )
    if math.isnan(low):
        return ""
    if math.isclose(high - estimate, estimate - low, abs_tol=1e-9 * abs(scale)):
        return f"± {(high - low) / 2:{form}}"
    return f"[{low:{form}}, {high:{form}}]"


def _plain(array: np.ndarray[Any, Any]) -> Any:
    return array.item() if array.ndim == 0 else array
