"""T2 and T3: principal angles between masked row spaces of one frame, and of a random frame.

Two masks of one frame A share |I| directions exactly, at angle zero; the rest is decided by the
Gram matrix A A^T, and at a random start by chance alone.
"""

from __future__ import annotations

import functools

import numpy as np
import scipy
import torch
from numpy.typing import NDArray
from torch import Tensor

from analyses.mask_theory import chance, needs
from analyses.mask_theory.comparison import (
    Comparison,
    NotTestableError,
    indicative,
    no_exceptions,
    within_rounding,
)
from analyses.mask_theory.drawn_masks import disjoint_pairs
from analyses.mask_theory.laws import Law
from analyses.mask_theory.prediction import Need, known, prediction
from analyses.mask_theory.record import Group, once
from subspace_lab import linalg
from subspace_lab.linalg.rank_core import Frame
from subspace_lab.theory.masked_angles import (
    angles_from_gram,
    random_squared_cosines,
    right_angles_pmf,
)

MAX_PAIRS = 200  # of masks, whose angles are taken twice
FLOAT64 = 2.0**-52
NOT_RANDOM = "the rows of A did not start as independent draws"

LATER_CORE = Need(lambda group: group.core_steps[-1] > 0, "no core after the start was recorded")

MASKED_ROWS = (needs.STEP_MASKS, needs.CORES, needs.INDEPENDENT_ROWS)
of_rows = functools.partial(prediction, "T2", always=MASKED_ROWS, tests="identity")
at_start = functools.partial(prediction, "T3", tests="initialization")


@once
def _successive(group: Group) -> tuple[Frame, Tensor, Tensor, linalg.MaskedAngles]:
    """Give frames (N) of steps t, their masks t and t + 1 (N, r), and the angles between these."""
    steps, cores = group.cores
    recorded = group.mask_steps
    places = np.flatnonzero(np.isin(steps, recorded) & np.isin(steps + 1, recorded))
    if not len(places):
        raise NotTestableError("no core is recorded with its mask and the next one")
    R = cores[torch.from_numpy(places)].row.R.flatten(0, 1)
    first, second = (
        torch.from_numpy(group.masks_of(steps[places] + shift)).flatten(0, 1) for shift in (0, 1)
    )
    return Frame(R), first, second, linalg.masked_angles(R, first, second)


@of_rows("exact zero angles", "the number of zero angles differs from that of shared directions")
def zeros(group: Group) -> Comparison:
    """As many angles are exactly zero as directions are shared."""
    *_, angles = _successive(group)
    return no_exceptions((angles.angles == 0).sum(-1) != angles.shared)


@of_rows("angles from the Gram matrix", "angles of masked row spaces are not those of A A^T")
def from_gram(group: Group) -> Comparison:
    """Angles of successive masks from the Gram matrix equal those from the frame."""
    frames, first, second, pairs = _successive(group)
    usable = (first.any(-1) & second.any(-1)).nonzero().flatten()
    chosen = usable[torch.linspace(0, len(usable) - 1, min(MAX_PAIRS, len(usable))).long()]
    if not len(chosen):
        raise NotTestableError("all pairs of masks have an empty one")
    differences = [
        angles_from_gram(frames.gram[i], first[i], second[i]).angles - angles[~angles.isnan()]
        for i, angles in zip(chosen.tolist(), pairs.angles[chosen], strict=True)
    ]
    condition = float(torch.linalg.cond(frames.R[chosen]).max())
    return within_rounding(
        0,
        float(torch.cat(differences).abs().max()),
        tolerance=condition * FLOAT64**0.5,
        basis="largest difference in radians; rounding of a Gram matrix, sqrt(eps) cond(A)",
        samples=len(chosen),
    )


@prediction(
    "T2",
    "right angles, coordinate picture",
    "masks do not overlap as independent draws do",
    needs.STEP_MASKS,
    needs.INDEPENDENT_GATES,
    needs.SOME_DROPPED,
    needs.CORES,
    tests="masks drawn",
)
def right(group: Group) -> Comparison:
    """In coordinates, min(|M|, |M'|) - |I| angles are right."""
    first, second = disjoint_pairs(known(group.masks), lag=1)
    right = np.minimum(first.sum(-1), second.sum(-1)) - (first & second).sum(-1)
    pmf = right_angles_pmf(group.rank, keep_prob=known(group.law).keep_prob)
    if not pmf[0] < 1:
        raise NotTestableError("masks of one direction make no right angles")
    return chance.mean_of_counts(right, pmf=pmf)


@at_start("overlap of A's halves at the start", NOT_RANDOM, needs.RANDOM_START)
def halves(group: Group) -> Comparison:
    """The first and last r/2 rows of a random A are independent subspaces of R^n."""
    half = group.rank // 2
    if not half:
        raise NotTestableError("one direction has no halves")
    R = group.core(0).row.R
    first = (torch.arange(group.rank) < half).expand(len(R), -1)
    return _against_random(*_residual(group, R, first, ~first))


# At the random start sum cos² past the shared directions is ab / (n - |I|), on average.
residual = at_start("residual cos² at the start", NOT_RANDOM, needs.TWO_MASKS, needs.RANDOM_START)(
    lambda group: _against_random(*_residual_of_first_masks(group, step=0))
)


@prediction(
    "T3",
    "residual cos² at the end",
    "the rows of A aligned in training",
    needs.TWO_MASKS,
    needs.RANDOM_START,
    LATER_CORE,
    tests="training",
)
def learned(group: Group) -> Comparison:
    """Training aligns the rows of A, or not: the same sum at the last step."""
    measured, nulls = _residual_of_first_masks(group, step=group.core_steps[-1])
    means, variances, _ = nulls.T
    return indicative(
        means.mean(),
        float(measured.mean()),
        tolerance=4 * variances.sum() ** 0.5 / len(nulls),
        basis="training aligns rows: the random null is where it began",
        samples=len(measured),
    )


@at_start(
    "overlap phi of masks at the start",
    "masked row spaces do not overlap as by chance",
    needs.TWO_MASKS,
    needs.RANDOM_START,
)
def phi(group: Group) -> Comparison:
    """Overlap phi of two masks of the random A, given the masks: (|I| + ab / (n - |I|)) / min.

    All pairs of masks of a module see the same random frame, so that each module counts once, with
    the average over its pairs.
    """
    first, second = (torch.from_numpy(side) for side in disjoint_pairs(known(group.masks), lag=1))
    angles = linalg.masked_angles(group.core(0).row.R, first, second)
    n = torch.tensor(group.modules["n"].tolist())
    null = random_squared_cosines(
        n, angles.kept_x - angles.shared, angles.kept_y - angles.shared, shared=angles.shared
    )
    smaller = torch.minimum(angles.kept_x, angles.kept_y).clamp(min=1)
    expected = (null / smaller).mean(0)
    phi = (angles.angles.cos().square().nansum(-1) / smaller).mean(0)
    mean = float(expected.mean())
    return chance.mean_by_student((phi - expected + mean).numpy(), expected=mean)


def _residual_of_first_masks(group: Group, *, step: int) -> tuple[Tensor, NDArray[np.float64]]:
    masks = torch.from_numpy(known(group.masks))
    return _residual(group, group.core(step).row.R, masks[0], masks[1])


def _residual(
    group: Group, R: Tensor, first: Tensor, second: Tensor
) -> tuple[Tensor, NDArray[np.float64]]:
    """Sum of cos² past the shared directions (M), and for random frames (M, 3).

    Of these its mean and variance, and the number of angles.
    """
    angles = linalg.masked_angles(R, first, second)
    total = angles.angles.cos().square().nansum(-1) - angles.shared
    nulls = []
    sizes = (angles.shared.tolist(), angles.kept_x.tolist(), angles.kept_y.tolist())
    for n, shared, kept, next_kept in zip(group.modules["n"], *sizes, strict=True):
        a, b = kept - shared, next_kept - shared
        law = linalg.random_angle_moments(n, a, b, shared=shared)
        nulls.append((law.mean - shared, law.variance, min(a, b)))
    return total, np.array(nulls)


def _against_random(measured: Tensor, nulls: NDArray[np.float64]) -> Comparison:
    """Compare the mean over modules of sum cos² with that of random frames.

    The sum over modules is between 0 and the number of angles. Its law is taken to be the beta law
    on that interval with the same mean and variance, which it is for one angle of one module.
    """
    mean, variance, angles = nulls.sum(0)
    if not variance > 0:
        raise NotTestableError("these masks leave no angle to chance")
    share = mean / angles
    weight = share * (1 - share) * angles**2 / variance - 1
    return chance.within_chance(
        Law(scipy.stats.beta(share * weight, (1 - share) * weight, scale=angles), 0, angles),
        float(measured.sum()),
        basis="quantiles of a beta law of the same mean and variance",
        samples=len(nulls),
        per=len(nulls),
    )
