"""T6: ranks and singular values of masked updates."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from analyses.mask_theory.comparison import Comparison, NotTestableError, indicative, no_exceptions
from analyses.mask_theory.needs import COVERED_LAW
from analyses.mask_theory.norms import NEXT_MASKS, ROUNDING, masked_states
from analyses.mask_theory.prediction import Prediction, known, prediction
from analyses.mask_theory.record import Group
from subspace_lab import linalg
from subspace_lab.theory.masked_rank import (
    InterlacingBounds,
    factor_interlacing,
    update_interlacing,
)

WELL_CONDITIONED = 1e-8  # smallest singular value of an update that counts as of full rank

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
