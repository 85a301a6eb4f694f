"""The estimates behind `probe`: ratios, means and keep_prob, with their standard errors.

The first axis of all samples is the optimizer step: only steps are independent draws.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy import optimize, stats
from torch import Tensor

DECISION = 4.0  # standard errors that a decision needs
ROUNDING = 0.01  # what is allowed for bias and rounding beside the standard error
JACKKNIFE_GROUPS = 16
SKEWNESS_TOLERANCE = 0.25


@dataclass(frozen=True)
class Estimate:
    """A number and its standard error over independent steps."""

    value: float
    standard_error: float

    def differs_from(self, value: float) -> bool:
        """Whether `value` is out of reach of the estimate."""
        return abs(self.value - value) > DECISION * self.standard_error + ROUNDING


def ratio_of_sums(numerator: Tensor, denominator: Tensor) -> Estimate:
    """Ratio of sums, with its standard error over the first axis (delta method)."""
    above, below = (part.flatten(1).sum(1) for part in (numerator, denominator))
    value = above.sum() / below.sum()
    error = (above - value * below).std() * math.sqrt(len(above)) / below.sum()
    return Estimate(float(value), float(error))


def mean_of(samples: Tensor) -> Estimate:
    """Mean over all axes, with its standard error over the first."""
    return ratio_of_sums(samples, torch.ones_like(samples))


def relative_spread(samples: Tensor) -> float:
    """Standard deviation over mean."""
    samples = samples.double()
    return float(samples.std() / samples.mean())


class TokenMasks(NamedTuple):
    """What the outputs of masks per token tell about their Bernoulli law."""

    keep_prob: Estimate
    input_keep_prob: float  # of input dropout; 1 within errors where there is none


def fit_token_masks(
    values: Float[Tensor, "step call sample copy input r"],
    alive: Bool[Tensor, "step call sample copy input"],
) -> TokenMasks | None:
    """Fit keep_prob and input_keep_prob to (E|M|)^2 / Var|M| and to the share of zero outputs.

    Args:
        values: outputs for each input, in a basis of their span.
        alive: False where an output is zero as a whole.

    Returns:
        None where the number |M| of kept directions is not binomial.
    """
    rank, zeros = values.shape[-1], float((~alive).double().mean())
    fit = _fit_binomial(values, torch.ones_like(alive), lowest=0)
    if fit is not None:
        pruned = 1 - fit.keep_prob.value
        error = math.hypot(
            math.sqrt(zeros * (1 - zeros) / alive.numel()),
            rank * pruned ** (rank - 1) * fit.keep_prob.standard_error,
        )
        if abs(zeros - pruned**rank) > DECISION * error + 1 / alive.numel():
            # Not as many zeros as empty masks make: input dropout. Fit the nonempty masks alone.
            fit = _fit_binomial(values, alive, lowest=1)
    if fit is None or abs(fit.excess_skewness) > SKEWNESS_TOLERANCE:
        return None
    nonempty = 1 - (1 - fit.keep_prob.value) ** rank
    return TokenMasks(fit.keep_prob, input_keep_prob=(1 - zeros) / nonempty)


class _BinomialFit(NamedTuple):
    keep_prob: Estimate
    excess_skewness: float  # of the counts |M|, above that of the fitted law


def _fit_binomial(values: Tensor, weight: Tensor, *, lowest: int) -> _BinomialFit | None:
    """keep_prob by a jackknife over groups of steps; None where |M| does not vary.

    `weight` tells which outputs count; `lowest` is 1 where empty masks are not among them, else 0.
    """
    rank = values.shape[-1]
    groups = []
    for y, w in zip(
        values.tensor_split(JACKKNIFE_GROUPS), weight.tensor_split(JACKKNIFE_GROUPS), strict=True
    ):
        y, w = y.flatten(0, 3), w.flatten(0, 3).double()[..., None]
        moment = torch.einsum("tpi,tpj->pij", y * w, y)
        groups.append((w.sum(0), (w * y).sum(0), moment))
    total = [torch.stack(part).sum(0) for part in zip(*groups, strict=True)]

    def covariance(count: Tensor, first: Tensor, second: Tensor) -> Tensor:
        return (second - first[:, :, None] * first[:, None] / count[..., None]) / (
            count[..., None] - 1
        )

    def fit(count: Tensor, first: Tensor, second: Tensor) -> float:
        u = torch.linalg.solve(covariance(count, first, second), first / count)
        return _solve_keep_prob(float((u * first / count).sum(-1).mean()), rank, lowest)

    spectra = torch.linalg.eigvalsh(covariance(*total))
    if (spectra[:, 0] < 1e-12 * spectra[:, -1]).any():
        return None
    mean = total[1] / total[0]
    u = torch.linalg.solve(covariance(*total), mean)
    whole = fit(*total)
    left_out = [
        fit(*(everything - part for everything, part in zip(total, group, strict=True)))
        for group in groups
    ]
    G, average = JACKKNIFE_GROUPS, float(np.mean(left_out))
    error = math.sqrt((G - 1) / G * np.sum(np.subtract(left_out, average) ** 2))
    projections = ((values - mean) * u).sum(-1).masked_fill(~weight, torch.nan)
    cubes, squares = ((projections**power).flatten(0, 3).nanmean(0) for power in (3, 2))
    keep_prob = G * whole - (G - 1) * average
    skewness = float((cubes / squares**1.5).mean())
    return _BinomialFit(
        Estimate(keep_prob, error), skewness - _count_law(keep_prob, rank, lowest).skewness
    )


class _CountLaw(NamedTuple):
    ratio: float  # (E|M|)^2 / Var|M|
    skewness: float


def _count_law(keep_prob: float, rank: int, lowest: int) -> _CountLaw:
    """Bin(r, q), or with `lowest` = 1 the same without the empty mask."""
    counts = np.arange(lowest, rank + 1)
    pmf = stats.binom.pmf(counts, rank, keep_prob)
    pmf /= pmf.sum()
    mean = pmf @ counts
    variance, third = (pmf @ (counts - mean) ** power for power in (2, 3))
    return _CountLaw(float(mean**2 / variance), float(third / variance**1.5))


def _solve_keep_prob(ratio: float, rank: int, lowest: int) -> float:
    if lowest == 0:
        return ratio / (ratio + rank)
    # Without empty masks a small q gives a large ratio too; the skewness tells the two apart.
    least = optimize.minimize_scalar(
        lambda q: _count_law(q, rank, lowest).ratio, bounds=(1e-6, 1 - 1e-9), method="bounded"
    ).x
    if ratio <= _count_law(least, rank, lowest).ratio:
        return float(least)
    return float(
        optimize.brentq(lambda q: _count_law(q, rank, lowest).ratio - ratio, least, 1 - 1e-9)
    )
