"""T13, T15 and T16: how far directions moved over training, and what was conserved."""

from __future__ import annotations

import functools

import numpy as np
import torch
from torch import Tensor

from analyses.mask_theory import needs
from analyses.mask_theory.comparison import (
    Comparison,
    NotTestableError,
    indicative,
    no_exceptions,
    within_rounding,
)
from analyses.mask_theory.prediction import Prediction, known, prediction
from analyses.mask_theory.record import Group
from subspace_lab import linalg
from subspace_lab.linalg.rank_core import RankCore
from subspace_lab.theory.adam import leakage as expected_leakage
from subspace_lab.theory.gauge import balance_slope

RANK_ROUNDING = 1e-7
STILL = 1e-9  # radians

of_sgd_steps = functools.partial(
    prediction, always=(needs.STEP_MASKS, needs.PLAIN_SGD, needs.EVERY_STEP), tests="training"
)


@prediction("", "weights are finite", "training diverged", tests="training")
def finite(group: Group) -> Comparison | None:
    """Weights are finite: a row of runs that diverged only; their other rows end before that."""
    if all(group.finite.values()):
        return None
    return no_exceptions([not finite for finite in group.finite.values()])


@of_sgd_steps("T15", "rank of a step is at most 2|M|", "a step used more than its mask allows")
def rank_of_a_step(group: Group) -> Comparison:
    """Without momentum and decay a step has at most twice the rank of its mask."""
    core, kept = _moving_cores(group)
    sigma = torch.linalg.svdvals(core.change("previous"))
    return no_exceptions((sigma > RANK_ROUNDING * sigma[..., :1]).sum(-1) > 2 * kept)


@of_sgd_steps(
    "T15", "frame angles are at most the kept", "plain SGD turned more directions than it kept"
)
def turning_directions(group: Group) -> Comparison:
    """A turn of the frame has at most the rank of the mask."""
    core, kept = _moving_cores(group)
    angles = linalg.principal_angles(core.row.now(), core.row.before("previous"))
    return no_exceptions((angles > STILL).sum(-1) > kept)


@prediction(
    "T13",
    "balance of A's and B's steps",
    "steps on A and B do not balance: ||b_i||² - ||a_i||² drifts",
    needs.DISPLACEMENTS,
    needs.PLAIN_SGD,
    tests="training",
)
def balance(group: Group) -> Comparison:
    """SGD: B^T dB = dA A^T on pairs of kept directions, so ||b_i||² - ||a_i||² is conserved.

    To second order, that is: it changes by ||db_i||² - ||da_i||². With masks per sample or token
    only the diagonal, i = j, is equal.
    """
    steps, cores = group.cores
    A_side = cores.row.displacement("previous").coordinates.mT @ cores.row.before("previous")
    B_step = cores.column.displacement("previous").coordinates
    B_side = cores.column.before("previous").mT @ B_step
    if needs.MASKS_KNOWN.is_met(group):
        kept = torch.from_numpy(group.masks_of(steps[steps > 0]))
        pairs = torch.zeros(B_side.shape, dtype=torch.bool)
        pairs[torch.from_numpy(steps > 0)] = kept[..., :, None] & kept[..., None, :]
    else:
        pairs = torch.eye(group.rank, dtype=torch.bool).expand(B_side.shape)
    if not bool(A_side[pairs].any()):
        raise NotTestableError("A did not move")
    slope = float(balance_slope(A_side[pairs], B_side[pairs]))
    basis = "slope; rounding of float32 weights and of gradients"
    return within_rounding(1, slope, tolerance=0.02, basis=basis, samples=int(pairs.sum()))


def _leakage(factor: str, side: str) -> Prediction:
    """Predict the share of the growth of ||X_t - X_0||² in masked steps: b1 (1 - q)."""

    @prediction(
        "T16",
        f"{factor}'s displacement while masked",
        "momentum moves masked directions by a different share",
        needs.STEP_MASKS,
        needs.COVERED_LAW,
        needs.ADAMW,
        needs.EVERY_STEP,
        tests="training",
    )
    def leakage(group: Group) -> Comparison:
        displacements = known(group.displacements)
        squared = getattr(displacements, side).start ** 2
        if not squared[-1].sum() > 0:
            raise NotTestableError(f"{factor} did not move")
        beta1, q = known(group.optimizer).betas[0], known(group.law).keep_prob
        share = expected_leakage(keep_prob=q, beta1=beta1)
        masked = ~group.masks_of(displacements.steps)
        growth = np.diff(squared, axis=0, prepend=0)
        return indicative(
            share,
            growth[masked].sum() / squared[-1].sum(),
            tolerance=0.25 * share,
            basis="holds for stationary gradients; real ones change, and first steps differ",
            samples=masked.size,
        )

    return leakage


leakage_of_b, leakage_of_a = _leakage("B", "column"), _leakage("A", "row")


def _moving_cores(group: Group) -> tuple[RankCore, Tensor]:
    """Give the cores (T, M) of steps, and the number of directions that each kept."""
    steps, cores = group.cores
    kept = torch.from_numpy(group.masks_of(steps[steps > 0]).sum(-1))
    return cores[torch.from_numpy(steps > 0)], kept
