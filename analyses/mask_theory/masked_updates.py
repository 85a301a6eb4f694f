"""T5 to T7: norms, ranks and singular values of masked updates, and their regularizer.

The mask of step t + 1 is drawn without regard to the state that step t left, so it is a fair draw
for the core of step t. (The mask of step t is not: that state came about under it.)
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from analyses.mask_theory import chance
from analyses.mask_theory.comparison import Comparison, NotTestableError, indicative, no_exceptions
from analyses.mask_theory.needs import CORES, COVERED_LAW, STEP_MASKS
from analyses.mask_theory.prediction import Need, Prediction, known, prediction
from analyses.mask_theory.record import Group, once
from subspace_lab import linalg
from subspace_lab.linalg.rank_core import RankCore
from subspace_lab.theory import masked_moments
from subspace_lab.theory.masked_rank import (
    InterlacingBounds,
    factor_interlacing,
    update_interlacing,
)
from subspace_lab.theory.regularizer import explicit_regularizer, nuclear_norm_bound

ROUNDING = 1e-10  # relative to the largest singular value
MIN_CORES = 12  # whose mean has a law that three cumulants describe
WELL_CONDITIONED = 1e-8  # smallest singular value of an update that counts as of full rank
DRAWS = 64  # of masks for each state, to estimate the skewness of squared norms


class Masked(NamedTuple):
    """Cores (N modules of N states) and the masks (N, r) that came next, without dW = 0."""

    core: RankCore
    masks: Tensor


@once
def masked_states(group: Group) -> Masked:
    """Pair the cores of steps t with the masks of steps t + 1, where the update is not zero."""
    steps, core = group.cores
    places = np.flatnonzero(np.isin(steps + 1, group.mask_steps))
    chosen = core[torch.from_numpy(places)]
    masks = torch.from_numpy(group.masks_of(steps[places] + 1))
    present = chosen.norm() > 0
    return Masked(chosen[present], masks[present])


NEXT_MASKS = Need(
    lambda group: len(masked_states(group).masks),
    "no core with an update is followed by a known mask",
    STEP_MASKS,
    CORES,
)
DROPPED = Need(lambda group: not masked_states(group).masks.all(), "no direction was dropped")

of_masks = functools.partial(prediction, always=(NEXT_MASKS, COVERED_LAW), tests="masks drawn")


class _SquaredNorms(NamedTuple):
    """Of masked updates, all (N,) and up to scaling and rescale: d^T H d and its law."""

    masked: Tensor
    expected: Tensor
    variance: Tensor  # of `masked`
    third: Tensor  # its third central moment, estimated
    mean: Tensor  # squared norm of the mean update


@once
def _squared_norms(group: Group) -> _SquaredNorms:
    law, masked = known(group.law), masked_states(group)
    B, A = masked.core.column.R, masked.core.row.R.mT
    moments = law.moments(group.rank)
    H, mean = masked_moments.gram_product(B, A), torch.from_numpy(moments.mean)
    expected = masked_moments.expected_output_energy(B, A, moments)
    # Drawn from the law, for moments that have no closed form.
    generator = torch.Generator().manual_seed(0)
    uniform = torch.rand(DRAWS, len(H), group.rank, generator=generator, dtype=torch.float64)
    draws = masked_moments.masked_energy(H, law.draw(uniform).double()) - expected
    variance = draws.square().mean(0)
    if law.independent_gates:
        variance = masked_moments.variance_of_output_energy(B, A, keep_prob=law.keep_prob)
    return _SquaredNorms(
        masked_moments.masked_energy(H, masked.masks.double()),
        expected,
        variance,
        draws.pow(3).mean(0),
        masked_moments.masked_energy(H, mean.expand(len(H), -1)),
    )


def _mean_over_masks(norms: _SquaredNorms, *, unit: Tensor, less: float) -> Comparison:
    """Compare the mean of masked / unit - less with its expectation."""
    if len(unit) < MIN_CORES:
        raise NotTestableError(f"it takes {MIN_CORES} cores with updates")
    expected = float((norms.expected / unit).mean()) - less
    values = (norms.masked - norms.expected) / unit + expected
    return chance.mean_of_draws(
        values.numpy(),
        expected=expected,
        variance=float((norms.variance / unit**2).mean()),
        third=float((norms.third / unit**3).mean()),
    )


@of_masks(
    "T5",
    "masked norm² over expected",
    "the next mask is not drawn independently of the weights",
)
def norm(group: Group) -> Comparison:
    """||dW_D||² over its expectation is 1 on average."""
    norms = _squared_norms(group)
    return _mean_over_masks(norms, unit=norms.expected, less=0)


def _regularizer_share(part: int, name: str) -> Prediction:
    """Predict E||dW_D||² / ||E dW_D||² - 1 = Var d / (E d)² times R / ||dW||².

    What a mask adds to the size of the update on average is the regularizer: measured from the
    masks, predicted from the weights (exact-k masks have a covariance in place of the variance).
    """

    @of_masks(
        "T7",
        f"regularizer over norm², {name} third",
        "masks do not increase the update as their regularizer predicts",
        DROPPED,
    )
    def share(group: Group) -> Comparison:
        norms = _squared_norms(group)
        third = _SquaredNorms(*(numbers.tensor_split(3)[part] for numbers in norms))
        return _mean_over_masks(third, unit=third.mean, less=1)

    return share


first_share, middle_share, last_share = (
    _regularizer_share(part, name) for part, name in enumerate(("first", "middle", "last"))
)


@prediction(
    "T7",
    "regularizer above its bound",
    "R is below the squared nuclear norm over r",
    CORES,
    tests="identity",
)
def regularizer(group: Group) -> Comparison:
    """R = sum ||b_i||² ||a_i||² >= ||B A||_*² / r."""
    core = group.cores[1]
    core = core[core.norm() > 0]
    if not len(core.scaling):
        raise NotTestableError("every recorded update is zero")
    B, A = core.column.R, core.row.R.mT
    return no_exceptions(explicit_regularizer(B, A) < nuclear_norm_bound(B, A) * (1 - ROUNDING))


of_masked = functools.partial(prediction, "T6", always=(NEXT_MASKS,))
of_every_update = functools.partial(of_masked, tests="identity")


@of_every_update(
    "masked rank is the kept count", "masked updates do not have the rank of their masks"
)
def rank(group: Group) -> Comparison:
    """Rank of B D A is |M| wherever B A has full rank."""
    core, masks = masked_states(group)
    sigma = core.singular_values()
    usable = sigma[:, -1] > WELL_CONDITIONED * sigma[:, 0]
    if not bool(usable.any()):
        raise NotTestableError("no update has full rank")
    sigma, kept = core[usable].singular_values(masks[usable]), masks[usable].sum(-1)
    return no_exceptions(linalg.effective_rank(sigma, measure="numerical", kept=kept) != kept)


@of_every_update("Weyl interlacing", "masked singular values leave their bounds")
def weyl(group: Group) -> Comparison:
    """The singular values of B D A lie within Weyl's bounds."""
    core, masks = masked_states(group)
    sigma, of_kept = core.singular_values(), core.singular_values(masks)
    return _within_bounds(update_interlacing, sigma, of_kept, masks)


@of_every_update("Cauchy interlacing of A", "singular values of masked A leave their bounds")
def cauchy(group: Group) -> Comparison:
    """The singular values of the kept rows of A lie within Cauchy's bounds."""
    core, masks = masked_states(group)
    sigma = torch.linalg.svdvals(core.row.R)
    of_kept = torch.linalg.svdvals(core.row.R * masks[:, None])
    return _within_bounds(factor_interlacing, sigma, of_kept, masks)


def _within_bounds(
    bounds_of: Callable[..., InterlacingBounds], sigma: Tensor, masked: Tensor, masks: Tensor
) -> Comparison:
    kept = masks.sum(-1)
    violated = torch.zeros(len(kept), dtype=torch.bool)
    for count in kept.unique().tolist():
        these = kept == count
        bounds, values = bounds_of(sigma[these], kept=count), masked[these, :count]
        slack = ROUNDING * sigma[these, :1]
        outside = (values < bounds.lower - slack) | (values > bounds.upper + slack)
        violated[these] = outside.any(-1)
    return no_exceptions(violated)


def _shrinking_rank(measure: linalg.Measure, name: str) -> Prediction:
    """Effective ranks shrink by keep_prob for flat spectra only: "half the rank" is about rank."""

    @of_masked(
        f"masked {measure} rank over full",
        f"the {name} does not shrink by keep_prob",
        COVERED_LAW,
        tests="trained model",
    )
    def shrinks(group: Group) -> Comparison:
        (core, masks), q = masked_states(group), known(group.law).keep_prob
        some = masks.any(-1)
        sigma, of_kept = core[some].singular_values(), core[some].singular_values(masks[some])
        full = linalg.effective_rank(sigma, measure=measure)
        shrunk = linalg.effective_rank(of_kept, measure=measure, kept=masks[some].sum(-1))
        measured = float((shrunk / full).mean())
        basis = "exact only for orthogonal directions of equal norm"
        return indicative(q, measured, tolerance=0.25 * q, basis=basis, samples=len(full))

    return shrinks


entropy_rank = _shrinking_rank("entropy", "entropy effective rank")
stable_rank = _shrinking_rank("stable", "stable rank")
