"""T15 and T16: which directions moved in which of their first steps.

With B = 0 at the start and without weight decay, b_i gets its first gradient on the first step that
keeps direction i, and a_i, whose gradient is b_i^T times something, on the second. Before that both
stand still exactly, under any optimizer: so a run's cores show which masks it was trained with.
"""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

from analyses.mask_theory import chance, needs
from analyses.mask_theory.comparison import (
    Comparison,
    NotTestableError,
    no_exceptions,
    within_rounding,
)
from analyses.mask_theory.prediction import Need, Prediction, known, prediction
from analyses.mask_theory.record import Group, first_true, once
from subspace_lab.theory.adam import first_activation_step
from subspace_lab.theory.mask_overlap import untouched_probability

RANK_ROUNDING = 1e-7
MOVING = 1e-12  # gradient of an entry that moves a weight under AdamW, at usual learning rates
ABOVE_EPS = 1e-6  # gradient of an entry beside which Adam's eps is small
VANISHES = "the gradient vanishes, or is not finite"

BATCH_KNOWN = Need(lambda group: _samples(group) is not None, "the batch size is not known")

of_first_steps = functools.partial(
    prediction, always=(needs.FROM_ZERO, needs.MASKS_KNOWN), tests="training"
)


first_columns = of_first_steps(
    "T15",
    "columns of B that step 1 moves",
    "the first step was not taken under the recorded mask: keep and prune swapped, masks per "
    "sample or token, or masks that differ between micro-batches",
)(lambda group: no_exceptions(_moved_first(group) != group.masks_of(np.array([1]))[0]))


@prediction(
    "T1",
    "directions that step 1 left",
    "the number of directions without a gradient is not what chance gives",
    needs.FROM_ZERO,
    needs.DRAWN_IN_PASSES,
    needs.LAWS_OWN_GATES,
    needs.COVERED_LAW,
    BATCH_KNOWN,
    tests="training",
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


def _first_moves_of(factor: str, which: int, side: str, *also: Need) -> Prediction:
    """Predict the step in which each direction of a factor first moves: its first or second kept.

    The gradient of a_i has b_i in it.
    """
    kept = ("first", "second")[which]

    @of_first_steps(
        "T16",
        f"{factor}'s first moves: {kept} kept step",
        "steps were not taken under the recorded masks",
        *also,
    )
    def first_moves(group: Group) -> Comparison:
        due = _first_moves(group)[which]
        moved = getattr(known(group.displacements), side).step > 0
        return no_exceptions(due != first_true(moved))

    return first_moves


first_moves_of_b = _first_moves_of("B", 0, "column")
first_moves_of_a = _first_moves_of("A", 1, "row", needs.NO_DECAY)


@of_first_steps(
    "T16",
    "length of B's first moves",
    "Adam's first step on a direction does not have the length lr f(t)",
    needs.ADAMW,
    needs.LEARNING_RATES,
)
def first_length(group: Group) -> Comparison:
    """Adam's step on a column of B first kept at t is lr_t f(t) in every entry."""
    displacements, (beta1, beta2) = known(group.displacements), known(group.optimizer).betas
    rates = known(group.learning_rates(displacements.steps))
    due = first_true(group.masks_of(displacements.steps).cumsum(0) >= 1)
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
    basis = "median over directions; Adam's eps and entries without a gradient"
    return within_rounding(1, np.median(ratios), tolerance=0.02, basis=basis, samples=len(ratios))


@of_first_steps("T15", "rank of the first update", "step 1 used more directions than its mask")
def first_rank(group: Group) -> Comparison:
    """The update after step 1 has at most rank |M|."""
    kept = group.masks_of(np.array([1]))[0].sum(-1)
    sigma = group.core(1).singular_values().numpy()
    return no_exceptions((sigma > RANK_ROUNDING * sigma[:, :1]).sum(-1) > kept)


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
    moving = np.ones(len(kept), dtype=bool) if rates is None else rates > 0
    if optimizer is None and not moving.all():
        raise NotTestableError(needs.OPTIMIZER.otherwise)
    remembers = optimizer is not None and optimizer.name == "AdamW"

    def moves(gradient: NDArray[np.bool_]) -> NDArray[np.bool_]:
        received = np.logical_or.accumulate(gradient) if remembers else gradient
        return received & moving[:, None, None]

    moves_b = moves(kept)
    before = np.logical_or.accumulate(moves_b) & ~(moves_b & (moves_b.cumsum(0) == 1))
    due_b, due_a = first_true(moves_b), first_true(moves(kept & before))
    last = min(int(max(due_b.max(), due_a.max())) + 1, len(kept))
    _check_gradients(group, steps[:last], minimum=MOVING)
    return due_b, due_a


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
