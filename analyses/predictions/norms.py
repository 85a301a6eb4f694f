"""T5 to T7: norms, ranks and singular values of masked updates, and the regulariser behind them.

The mask of step t + 1 is drawn without regard to the state that step t left, so it is a fair draw
for the core of step t. (The mask of step t is not: that state came about under it.)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from analyses.predictions.rows import Prediction, Row

if TYPE_CHECKING:
    from torch import Tensor

    from analyses.predictions.group import Group
    from subspace_lab.linalg.rank_core import RankCore

ROUNDING = 1e-10  # relative to the largest singular value
LEAST_CORES = 12  # whose mean has a law that three cumulants describe
DRAWS = 64  # of masks for each state, to estimate the skewness of squared norms
WELL_CONDITIONED = 1e-8  # least singular value of an update that counts as of full rank

NORM = Prediction(
    "masked norm² over expected",
    "T5",
    "masks drawn",
    "the coming mask is no fair draw for the weights",
)
SHARES = tuple(
    Prediction(
        f"regulariser over norm², {part} third",
        "T7",
        "masks drawn",
        "masks do not add to the update what their regulariser says",
    )
    for part in ("first", "middle", "last")
)
RANK = Prediction(
    "masked rank is the kept count",
    "T6",
    "identity",
    "masked updates do not have the rank of their masks",
)
WEYL = Prediction("Weyl interlacing", "T6", "identity", "masked singular values leave their bounds")
CAUCHY = Prediction(
    "Cauchy interlacing of A", "T6", "identity", "singular values of masked A leave their bounds"
)
ENTROPY = Prediction(
    "masked entropy rank over full",
    "T6",
    "trained model",
    "the entropy effective rank does not shrink by keep_prob",
)
STABLE = Prediction(
    "masked stable rank over full",
    "T6",
    "trained model",
    "the stable rank does not shrink by keep_prob",
)
REGULARISER = Prediction(
    "regulariser above its bound", "T7", "identity", "R is below the squared nuclear norm over r"
)
BALANCE_START = Prediction(
    "balance ratio, first update", "T5", "trained model", "the gauge is not the equalised one"
)
BALANCE_END = Prediction(
    "balance ratio, last update", "T5", "trained model", "the gauge is not the equalised one"
)


@dataclass(frozen=True)
class Masked:
    """Cores (N modules of N states) and the masks (N, r) that came next, dW = 0 left out."""

    core: RankCore
    masks: Tensor


def expected_norm(group: Group) -> Iterator[Row]:
    """||dW_D||² over its expectation is 1 on average."""
    found = _masked(group)
    if found is not None and len(found.masks) >= LEAST_CORES:
        norms = _squared_norms(group, found)
        yield from _mean_over_masks(NORM, norms, unit=norms.expected, less=0)


def regulariser_share(group: Group) -> Iterator[Row]:
    """E||dW_D||² / ||E dW_D||² - 1 = Var d / (E d)² times R / ||dW||², in each third of training.

    What a mask adds to the size of the update on average is the regulariser: measured from the
    masks, predicted from the weights (exact-k masks have a covariance in place of the variance).
    """
    found = _masked(group)
    if found is None or found.masks.all():
        return
    norms = _squared_norms(group, found)
    for prediction, part in zip(SHARES, range(3), strict=True):
        third = _SquaredNorms(*(each.tensor_split(3)[part] for each in norms))
        if len(third.mean) >= LEAST_CORES:
            yield from _mean_over_masks(prediction, third, unit=third.mean, less=1)


def masked_rank(group: Group) -> Iterator[Row]:
    """Rank of B D A is |M| wherever B A has full rank."""
    from subspace_lab import linalg

    found = _masked(group)
    if found is None:
        return
    full = found.core.singular_values()
    usable = full[:, -1] > WELL_CONDITIONED * full[:, 0]
    if not bool(usable.any()):
        return
    masks = found.masks[usable]
    rank = linalg.effective_rank(
        found.core[usable].singular_values(masks), measure="numerical", kept=masks.sum(-1)
    )
    yield RANK.never(rank != masks.sum(-1))


def interlacing(group: Group) -> Iterator[Row]:
    """Weyl's bounds for B D A, Cauchy's for the kept rows of A."""
    import torch

    from subspace_lab.theory.masked_rank import factor_interlacing, update_interlacing

    found = _masked(group)
    if found is None:
        return
    R = found.core.row.R
    pairs = {
        WEYL: (found.core.singular_values(), found.core.singular_values(found.masks)),
        CAUCHY: (torch.linalg.svdvals(R), torch.linalg.svdvals(R * found.masks[:, None])),
    }
    bounds_of = {WEYL: update_interlacing, CAUCHY: factor_interlacing}
    kept = found.masks.sum(-1)
    for prediction, (full, masked) in pairs.items():
        violated = torch.zeros(len(kept), dtype=torch.bool)
        for count in kept.unique().tolist():
            these = kept == count
            bounds, sigma = bounds_of[prediction](full[these], kept=count), masked[these, :count]
            slack = ROUNDING * full[these, :1]
            outside = (sigma < bounds.lower - slack) | (sigma > bounds.upper + slack)
            violated[these] = outside.any(-1)
        yield prediction.never(violated)


def effective_ranks(group: Group) -> Iterator[Row]:
    """Effective ranks shrink by keep_prob for flat spectra only: "half the rank" is about rank."""
    from subspace_lab import linalg
    from subspace_lab.linalg import Measure

    found = _masked(group)
    if found is None or group.law is None:
        return
    some = found.masks.any(-1)
    core, masks, q = found.core[some], found.masks[some], group.law.keep_prob
    measures: dict[Prediction, Measure] = {ENTROPY: "entropy", STABLE: "stable"}
    for prediction, measure in measures.items():
        full = linalg.effective_rank(core.singular_values(), measure=measure)
        masked = linalg.effective_rank(
            core.singular_values(masks), measure=measure, kept=masks.sum(-1)
        )
        yield prediction.indicative(
            q,
            float((masked / full).mean()),
            scale=0.25 * q,
            why="exact only for orthogonal directions of equal norm",
            samples=len(masks),
        )


def regulariser(group: Group) -> Iterator[Row]:
    """R = sum ||b_i||² ||a_i||² >= ||B A||_*² / r, so rho >= ||.||_*² / (r ||.||_F²)."""
    from subspace_lab.theory.masked_moments import balance_ratio
    from subspace_lab.theory.regulariser import explicit_regulariser, nuclear_norm_bound

    core = group.cores[1]
    core = core[core.norm() > 0]
    B, A = core.column.R, core.row.R.mT
    if not len(B):
        return
    bound = nuclear_norm_bound(B, A)
    yield REGULARISER.never(explicit_regulariser(B, A) < bound * (1 - ROUNDING))
    frobenius = (core.norm() / core.scaling.abs()) ** 2
    ratio, least = balance_ratio(B, A), bound / frobenius
    modules = min(len(group.modules), len(B))
    for prediction, part in ((BALANCE_START, slice(modules)), (BALANCE_END, slice(-modules, None))):
        yield prediction.indicative(
            float(least[part].mean()),
            float(ratio[part].mean()),
            scale=0.25 * float(least[part].mean()),
            why="a lower bound, attained where masks have equalised all directions (T14)",
            samples=modules,
        )


PREDICTIONS = (
    expected_norm,
    regulariser_share,
    masked_rank,
    interlacing,
    effective_ranks,
    regulariser,
)


class _SquaredNorms(NamedTuple):
    """Of masked updates, all (N,) and up to scaling and rescale: d^T H d and its law."""

    masked: Tensor
    expected: Tensor
    variance: Tensor  # of `masked`
    third: Tensor  # its third central moment, estimated
    mean: Tensor  # squared norm of the mean update


def _squared_norms(group: Group, found: Masked) -> _SquaredNorms:
    import torch

    from subspace_lab.theory import masked_moments

    assert group.law is not None
    B, A = found.core.column.R, found.core.row.R.mT
    H, q = masked_moments.gram_product(B, A), torch.from_numpy(group.moments.mean)
    expected = masked_moments.expected_output_energy(B, A, group.moments)

    def energy(masks: Tensor) -> Tensor:
        return torch.einsum("...ni,nij,...nj->...n", masks, H, masks)

    draws = energy(_drawn_masks(group, len(H))) - expected
    variance = draws.square().mean(0)
    if group.law.independent_gates:
        keep_prob = group.law.keep_prob
        variance = masked_moments.variance_of_output_energy(B, A, keep_prob=keep_prob)
    return _SquaredNorms(
        energy(found.masks.double()),
        expected,
        variance,
        draws.pow(3).mean(0),
        torch.einsum("i,nij,j->n", q, H, q),
    )


def _drawn_masks(group: Group, states: int) -> Tensor:
    """Draw masks (DRAWS, states, r) from the law, for moments that have no closed form."""
    import torch

    assert group.law is not None
    generator = torch.Generator().manual_seed(0)
    draws = torch.rand(DRAWS, states, group.rank, generator=generator, dtype=torch.float64)
    masks: Tensor = group.law.draw(draws)
    return masks.double()


def _mean_over_masks(
    prediction: Prediction, norms: _SquaredNorms, *, unit: Tensor, less: float
) -> Iterator[Row]:
    """Hold the mean of masked / unit - less against its expectation."""
    expected = float((norms.expected / unit).mean()) - less
    values = (norms.masked - norms.expected) / unit + expected
    return prediction.mean(
        values.numpy(),
        expected=expected,
        variance=float((norms.variance / unit**2).mean()),
        third=float((norms.third / unit**3).mean()),
    )


def _masked(group: Group) -> Masked | None:
    """Pair the cores of steps t with the masks of steps t + 1, where the update is not zero."""
    import numpy as np
    import torch

    if group.masks is None:
        return None
    steps, core = group.cores
    places = np.flatnonzero(np.isin(steps + 1, group.mask_steps))
    chosen = core[torch.from_numpy(places)]
    masks = torch.from_numpy(group.masks_of(steps[places] + 1))
    present = chosen.norm() > 0
    return Masked(chosen[present], masks[present]) if bool(present.any()) else None
