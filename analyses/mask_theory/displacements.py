"""T13, T15 and T16: which directions moved at which step, how far, and what was conserved.

With B = 0 at the start and without weight decay, b_i gets its first gradient on the first step that
keeps direction i, and a_i, whose gradient is b_i^T times something, on the second. Before that both
stand still exactly, under any optimizer: so a run's cores show which masks it was trained with.
"""

from __future__ import annotations

import functools

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from analyses.mask_theory import chance
from analyses.mask_theory.comparison import (
    Comparison,
    NotTestableError,
    indicative,
    no_exceptions,
    within_rounding,
)
from analyses.mask_theory.needs import (
    ADAMW,
    COVERED_LAW,
    DISPLACEMENTS,
    DRAWN_IN_PASSES,
    EVERY_STEP,
    FROM_ZERO,
    LEARNING_RATES,
    MASKS_KNOWN,
    NO_DECAY,
    OPTIMIZER,
    PLAIN_SGD,
    STEP_MASKS,
)
from analyses.mask_theory.prediction import Need, Prediction, known, prediction
from analyses.mask_theory.record import Group, once
from subspace_lab import linalg
from subspace_lab.linalg.rank_core import RankCore
from subspace_lab.theory.adam import first_activation_step
from subspace_lab.theory.adam import leakage as expected_leakage
from subspace_lab.theory.gauge import balance_slope
from subspace_lab.theory.mask_overlap import untouched_probability

RANK_ROUNDING = 1e-7
STILL = 1e-9  # radians
MOVING = 1e-12  # gradient of an entry that moves a weight under AdamW, at usual learning rates
ABOVE_EPS = 1e-6  # gradient of an entry beside which Adam's eps is small
VANISHES = "the gradient vanishes, or is not finite"

BATCH_KNOWN = Need(lambda group: _samples(group) is not None, "the batch size is not known")

of_training = functools.partial(prediction, tests="training")


@of_training("", "weights are finite", "training diverged")
def finite(group: Group) -> Comparison | None:
    """Weights are finite: said only of a run that diverged; other rows end before that step."""
    if all(group.finite.values()):
        return None
    return no_exceptions([not finite for finite in group.finite.values()])


first_columns = of_training(
    "T15",
    "columns of B that step 1 moves",
    "the first step was not taken under the recorded mask: keep and prune swapped, masks per "
    "sample or token, or masks that differ between micro-batches",
    FROM_ZERO,
    MASKS_KNOWN,
)(lambda group: no_exceptions(_moved_first(group) != group.masks_of(np.array([1]))[0]))


@of_training(
    "T1",
    "directions that step 1 left",
    "directions without a gradient are not as many as by chance",
    FROM_ZERO,
    DRAWN_IN_PASSES,
    COVERED_LAW,
    BATCH_KNOWN,
)
def untouched(group: Group) -> Comparison:
    """With masks per sample, N of them, a column of B stays with probability (1 - q)^N.

    With masks per token N is the number of tokens that carry a gradient, which is not recorded: one
    for each sample at least, which bounds the number of columns that stay from above.
    """
    law, stayed = known(group.law), ~_moved_first(group)
    probability = untouched_probability(keep_prob=law.keep_prob, tokens=known(_samples(group)))
    if law.granularity == "sample":
        return chance.count_of_events(stayed, probability=probability)
    why = "as if one token of each sample had a gradient"
    return chance.at_most(stayed, probability=probability, why=why)


@of_training(
    "T16",
    "B's first moves: first kept step",
    "steps were not taken under the recorded masks",
    FROM_ZERO,
    MASKS_KNOWN,
)
def first_moves_of_b(group: Group) -> Comparison:
    """b_i first moves on its first kept step."""
    due, _ = _first_moves(group)
    return no_exceptions(due != _first(known(group.displacements).column.step > 0))


@of_training(
    "T16",
    "A's first moves: second kept step",
    "steps were not taken under the recorded masks",
    FROM_ZERO,
    MASKS_KNOWN,
    NO_DECAY,
)
def first_moves_of_a(group: Group) -> Comparison:
    """a_i, whose gradient has b_i in it, first moves on its second."""
    _, due = _first_moves(group)
    return no_exceptions(due != _first(known(group.displacements).row.step > 0))


@of_training(
    "T16",
    "length of B's first moves",
    "Adam's first step on a direction does not have the length lr f(t)",
    FROM_ZERO,
    MASKS_KNOWN,
    ADAMW,
    LEARNING_RATES,
)
def first_length(group: Group) -> Comparison:
    """Adam's step on a column of B first kept at t is lr_t f(t) in every entry."""
    displacements, (beta1, beta2) = known(group.displacements), known(group.optimizer).betas
    rates = known(group.learning_rates(displacements.steps))
    due = _first(group.masks_of(displacements.steps).cumsum(0) >= 1)
    moving = np.argwhere(np.append(rates, 0)[due] > 0)
    if not len(moving):
        raise NotTestableError("no direction was first kept at a learning rate above 0")
    _check_gradients(group, displacements.steps[: due.max()], minimum=ABOVE_EPS)
    lengths = np.sqrt(group.modules["m"].to_numpy(dtype=float))
    ratios = []
    for m, i in moving.tolist():
        t = due[m, i]
        entry = rates[t] * first_activation_step(int(t) + 1, beta1=beta1, beta2=beta2)
        ratios.append(displacements.column.step[t, m, i] / (lengths[m] * entry))
    return within_rounding(
        1,
        float(np.median(ratios)),
        tolerance=0.02,
        basis="median over directions; Adam's eps and entries without a gradient",
        samples=len(ratios),
    )


@of_training(
    "T15",
    "rank of the first update",
    "step 1 used more directions than its mask",
    FROM_ZERO,
    MASKS_KNOWN,
)
def first_rank(group: Group) -> Comparison:
    """The update after step 1 has at most rank |M|."""
    kept = group.masks_of(np.array([1]))[0].sum(-1)
    sigma = group.core(1).singular_values().numpy()
    return no_exceptions((sigma > RANK_ROUNDING * sigma[:, :1]).sum(-1) > kept)


@of_training(
    "T15",
    "rank of a step is at most 2|M|",
    "a step used more than its mask allows",
    STEP_MASKS,
    PLAIN_SGD,
    EVERY_STEP,
)
def rank_of_a_step(group: Group) -> Comparison:
    """Without momentum and decay a step has at most twice the rank of its mask."""
    core, kept = _moving_cores(group)
    sigma = torch.linalg.svdvals(core.change("previous"))
    return no_exceptions((sigma > RANK_ROUNDING * sigma[..., :1]).sum(-1) > 2 * kept)


@of_training(
    "T15",
    "frame angles are at most the kept",
    "plain SGD turned more directions than it kept",
    STEP_MASKS,
    PLAIN_SGD,
    EVERY_STEP,
)
def turning_directions(group: Group) -> Comparison:
    """A turn of the frame has at most the rank of the mask."""
    core, kept = _moving_cores(group)
    angles = linalg.principal_angles(core.row.now(), core.row.before("previous"))
    return no_exceptions((angles > STILL).sum(-1) > kept)


@of_training(
    "T13",
    "balance of A's and B's steps",
    "steps on A and B do not balance: ||b_i||² - ||a_i||² drifts",
    DISPLACEMENTS,
    PLAIN_SGD,
)
def balance(group: Group) -> Comparison:
    """SGD: B^T dB = dA A^T on pairs of kept directions, so ||b_i||² - ||a_i||² is conserved.

    To second order, that is: it changes by ||db_i||² - ||da_i||².
    """
    slope, pairs = _balance(group)
    basis = "slope; rounding of float32 weights and of gradients"
    return within_rounding(1, slope, tolerance=0.02, basis=basis, samples=pairs)


@of_training(
    "T13", "balance under AdamW", "Adam breaks the balance of A and B", DISPLACEMENTS, ADAMW
)
def balance_under_adamw(group: Group) -> Comparison:
    """Under AdamW the same slope."""
    slope, pairs = _balance(group)
    why = "a law of gradient flow and SGD: Adam scales entries one by one and breaks it"
    return indicative(1, slope, scale=0.1, why=why, samples=pairs)


def _leakage(factor: str, side: str) -> Prediction:
    """Predict the share of the growth of ||X_t - X_0||² in masked steps: b1 (1 - q)."""

    @of_training(
        "T16",
        f"{factor}'s displacement while masked",
        "momentum carries masked directions by another share",
        STEP_MASKS,
        COVERED_LAW,
        ADAMW,
        EVERY_STEP,
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
            float(growth[masked].sum() / squared[-1].sum()),
            scale=0.25 * share,
            why="holds for stationary gradients; real ones change, and first steps differ",
            samples=masked.size,
        )

    return leakage


leakage_of_b, leakage_of_a = _leakage("B", "column"), _leakage("A", "row")


def _moved_first(group: Group) -> NDArray[np.bool_]:
    """Tell which columns of B (M, r) step 1 moved."""
    displacements = known(group.displacements)
    rates = group.learning_rates(displacements.steps)
    if rates is not None and rates[0] == 0:
        raise NotTestableError("the learning rate of step 1 is 0, where a warm-up may begin")
    _check_gradients(group, displacements.steps[:1], minimum=MOVING)
    return np.asarray(displacements.column.step[0] > 0)


@once
def _first_moves(group: Group) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Give the places (M, r) of the steps in which columns of B and rows of A first move.

    A step at learning rate 0, where a warm-up may begin, moves nothing; AdamW's momentum makes up
    for it in the next.
    """
    steps, optimizer = known(group.displacements).steps, group.optimizer
    kept, rates = group.masks_of(steps), group.learning_rates(steps)
    moving = np.ones((len(kept), 1, 1), dtype=bool)
    if rates is not None:
        moving = (rates > 0)[:, None, None]
    if optimizer is None and not moving.all():
        raise NotTestableError(OPTIMIZER.otherwise)
    remembers = optimizer is not None and optimizer.name == "AdamW"

    def moves(gradient: NDArray[np.bool_]) -> NDArray[np.bool_]:
        received = np.logical_or.accumulate(gradient) if remembers else gradient
        return received & moving

    moves_b = moves(kept)
    before = np.logical_or.accumulate(moves_b) & ~(moves_b & (moves_b.cumsum(0) == 1))
    due_b, due_a = _first(moves_b), _first(moves(kept & before))
    last = min(int(max(due_b.max(), due_a.max())) + 1, len(kept))
    _check_gradients(group, steps[:last], minimum=MOVING)
    return due_b, due_a


def _moving_cores(group: Group) -> tuple[RankCore, Tensor]:
    """Give the cores (T, M) of steps, and the number of directions that each kept."""
    steps, cores = group.cores
    kept = torch.from_numpy(group.masks_of(steps[steps > 0]).sum(-1))
    return cores[torch.from_numpy(steps > 0)], kept


@once
def _balance(group: Group) -> tuple[float, int]:
    """Give the slope of B^T dB on dA A^T, and the number of pairs of directions behind it.

    With masks per sample or token only the diagonal, i = j, is equal.
    """
    steps, cores = group.cores
    A_side = cores.row.displacement("previous").coordinates.mT @ cores.row.before("previous")
    B_step = cores.column.displacement("previous").coordinates
    B_side = cores.column.before("previous").mT @ B_step
    if MASKS_KNOWN.is_met(group):
        kept = torch.from_numpy(group.masks_of(steps[steps > 0]))
        pairs = torch.zeros(B_side.shape, dtype=torch.bool)
        pairs[torch.from_numpy(steps > 0)] = kept[..., :, None] & kept[..., None, :]
    else:
        pairs = torch.eye(group.rank, dtype=torch.bool).expand(B_side.shape)
    if not bool(A_side[pairs].any()):
        raise NotTestableError("A did not move")
    return float(balance_slope(A_side[pairs], B_side[pairs])), int(pairs.sum())


def _first(happened: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Place of the first True along the first axis; its length where there is none."""
    places: NDArray[np.int64] = np.where(happened.any(0), happened.argmax(0), len(happened))
    return places


def _samples(group: Group) -> int | None:
    """Samples of a batch on all processes; None where it is not known."""
    batch: int | None = group.config.get("global_batch")
    if batch is None and "batch_size" in group.config:
        processes = group.run.description.get("provenance", {}).get("processes", 1)
        batch = group.config["batch_size"] * group.config.get("accumulation", 1) * processes
    return batch


def _check_gradients(group: Group, steps: NDArray[np.int64], *, minimum: float) -> None:
    """Check that the entries of the gradient exceed `minimum` (root mean square) at these steps.

    An extreme scaling or learning rate leaves gradients that are infinite, zero, or below Adam's
    eps and the weights' rounding: then even kept directions stand still, whatever masked them.
    Norms that were not logged are taken to be usual ones.

    Raises:
        NotTestableError: if they do not.
    """
    norms, sizes = group.gradient_norms(steps), group.run.modules
    usual = (norms > minimum * (sizes["m"] * sizes["r"]).sum() ** 0.5) & (norms < np.inf)
    if not (np.isnan(norms) | usual).all():
        raise NotTestableError(VANISHES)
