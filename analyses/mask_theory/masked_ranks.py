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


@of_masked(
    "masked rank is the kept count",
    "masked updates do not have the rank of their masks",
    tests="identity",
)
def rank(group: Group) -> Comparison:
    """Rank of B D A is |M| wherever B A has full rank."""
    masked = known(masked_states(group))
    sigma = masked.core.singular_values()
    usable = sigma[:, -1] > WELL_CONDITIONED * sigma[:, 0]
    if not bool(usable.any()):
        raise NotTestableError("no update has full rank")
    masks = masked.masks[usable]
    ranks = linalg.effective_rank(
        masked.core[usable].singular_values(masks), measure="numerical", kept=masks.sum(-1)
    )
    return no_exceptions(ranks != masks.sum(-1))


@of_masked("Weyl interlacing", "masked singular values leave their bounds", tests="identity")
def weyl(group: Group) -> Comparison:
    """The singular values of B D A lie within Weyl's bounds."""
    masked = known(masked_states(group))
    sigma, of_kept = masked.core.singular_values(), masked.core.singular_values(masked.masks)
    return _within_bounds(update_interlacing, sigma, of_kept, masked.masks)


@of_masked(
    "Cauchy interlacing of A", "singular values of masked A leave their bounds", tests="identity"
)
def cauchy(group: Group) -> Comparison:
    """The singular values of the kept rows of A lie within Cauchy's bounds."""
    masked = known(masked_states(group))
    R = masked.core.row.R
    sigma = torch.linalg.svdvals(R)
    of_kept = torch.linalg.svdvals(R * masked.masks[:, None])
    return _within_bounds(factor_interlacing, sigma, of_kept, masked.masks)


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
        masked, q = known(masked_states(group)), known(group.law).keep_prob
        some = masked.masks.any(-1)
        core, masks = masked.core[some], masked.masks[some]
        full = linalg.effective_rank(core.singular_values(), measure=measure)
        shrunk = linalg.effective_rank(
            core.singular_values(masks), measure=measure, kept=masks.sum(-1)
        )
        return indicative(
            q,
            float((shrunk / full).mean()),
            tolerance=0.25 * q,
            basis="exact only for orthogonal directions of equal norm",
            samples=len(masks),
        )

    return shrinks


entropy_rank = _shrinking_rank("entropy", "entropy effective rank")
stable_rank = _shrinking_rank("stable", "stable rank")
