"""T13, T15 and T16: which directions moved at which step, how far, and what was conserved.

With B = 0 at the start and without weight decay, b_i gets its first gradient on the first step that
keeps direction i, and a_i, whose gradient is b_i^T times something, on the second. Before that both
stand still exactly, under any optimizer: so a run's cores tell which masks it was really trained
with.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from analyses.predictions.rows import Prediction, Row
from subspace_lab.theory.mask_overlap import untouched_probability

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from analyses.predictions.group import Group, Motions

RANK_ROUNDING = 1e-7
STILL = 1e-9  # radians
MOVING = 1e-12  # gradient of an entry that moves a weight under AdamW, at usual learning rates
ABOVE_EPS = 1e-6  # gradient of an entry beside which Adam's eps is small

FINITE = Prediction("weights are finite", "", "training", "training diverged")
FIRST_B = Prediction(
    "columns of B that step 1 moves",
    "T15",
    "training",
    "the first step was not taken under the recorded mask: keep and prune swapped, masks per "
    "sample or token, or masks that differ between micro-batches",
)
FIRST_MOVE_B = Prediction(
    "B's first moves: first kept step",
    "T16",
    "training",
    "steps were not taken under the recorded masks",
)
FIRST_MOVE_A = Prediction(
    "A's first moves: second kept step",
    "T16",
    "training",
    "steps were not taken under the recorded masks",
)
FIRST_LENGTH = Prediction(
    "length of B's first moves",
    "T16",
    "training",
    "Adam's first step on a direction has not the length lr f(t)",
)
FIRST_RANK = Prediction(
    "rank of the first update", "T15", "training", "step 1 used more directions than its mask"
)
UNTOUCHED = Prediction(
    "directions that step 1 left",
    "T1",
    "training",
    "directions without a gradient are not as many as by chance",
)
SGD_ANGLES = Prediction(
    "frame angles are at most the kept",
    "T15",
    "training",
    "plain SGD turned more directions than it kept",
)
SGD_RANK = Prediction(
    "rank of a step is at most 2|M|", "T15", "training", "a step used more than its mask allows"
)
GAUGE = Prediction(
    "balance of A's and B's steps",
    "T13",
    "training",
    "steps on A and B do not balance: ||b_i||² - ||a_i||² drifts",
)
GAUGE_ADAM = Prediction(
    "balance under AdamW", "T13", "training", "Adam breaks the balance of A and B"
)
LEAKAGE_B = Prediction(
    "B's displacement while masked",
    "T16",
    "training",
    "momentum carries masked directions by another share",
)
LEAKAGE_A = Prediction(
    "A's displacement while masked",
    "T16",
    "training",
    "momentum carries masked directions by another share",
)


def finite(group: Group) -> Iterator[Row]:
    """Weights are finite: said only of a run that diverged; other rows end before that step."""
    if not all(group.finite.values()):
        yield FINITE.never([not finite for finite in group.finite.values()])


def first_step(group: Group) -> Iterator[Row]:
    """Step 1 moves exactly the kept columns of B (all of them without a mask).

    With masks per sample, N of them, a column stays with probability (1 - q)^N. With masks per
    token N is the number of tokens that carry a gradient, which is not recorded: one for each
    sample at least, which bounds the number of columns that stay from above.
    """
    import numpy as np

    motions = _from_zero(group)
    if motions is None or not _has_gradients(group, motions.steps[:1], least=MOVING):
        return
    rates = group.learning_rates(motions.steps)
    if rates is not None and rates[0] == 0:  # a warm-up may begin there, and nothing moves
        return
    moved = motions.column.step[0] > 0
    if _masks_known(group):
        yield FIRST_B.never(moved != group.masks_of(np.array([1]))[0])
        return
    samples = _samples(group)
    if samples is None or group.law is None:
        return
    probability = untouched_probability(keep_prob=group.law.keep_prob, tokens=samples)
    if group.law.granularity == "sample":
        yield UNTOUCHED.count(~moved, probability=probability)
    else:
        why = "as if one token of each sample had a gradient"
        yield UNTOUCHED.at_most(~moved, probability=probability, why=why)


def first_moves(group: Group) -> Iterator[Row]:
    """b_i first moves on its first kept step, a_i, whose gradient has b_i in it, on its second.

    A step at learning rate 0, where a warm-up may begin, moves nothing; AdamW's momentum makes up
    for it in the next.
    """
    import numpy as np

    motions, optimizer = _from_zero(group), group.optimizer
    if motions is None or not _masks_known(group):
        return
    kept = group.masks_of(motions.steps)
    rates = group.learning_rates(motions.steps)
    moving = np.ones((len(kept), 1, 1), dtype=bool)
    if rates is not None:
        moving = (rates > 0)[:, None, None]
    if optimizer is None and not moving.all():
        return
    remembers = optimizer is not None and optimizer.name == "AdamW"

    def moves(gradient: NDArray[np.bool_]) -> NDArray[np.bool_]:
        received = np.logical_or.accumulate(gradient) if remembers else gradient
        return received & moving

    moves_b = moves(kept)
    before = np.logical_or.accumulate(moves_b) & ~(moves_b & (moves_b.cumsum(0) == 1))
    due_b, due_a = _first(moves_b), _first(moves(kept & before))
    last = min(int(max(due_b.max(), due_a.max())) + 1, len(kept))
    if not _has_gradients(group, motions.steps[:last], least=MOVING):
        return
    yield FIRST_MOVE_B.never(due_b != _first(motions.column.step > 0))
    if optimizer is not None and optimizer.weight_decay == 0:  # decay moves A at once
        yield FIRST_MOVE_A.never(due_a != _first(motions.row.step > 0))


def first_length(group: Group) -> Iterator[Row]:
    """Adam's step on a column of B first kept at t is lr_t f(t) in every entry."""
    import numpy as np

    from subspace_lab.theory.adam import first_activation_step

    motions = _from_zero(group)
    if motions is None or not _masks_known(group) or not _is_adamw(group):
        return
    assert group.optimizer is not None
    beta1, beta2 = group.optimizer.betas
    rates = group.learning_rates(motions.steps)
    due = _first(group.masks_of(motions.steps).cumsum(0) >= 1)
    if rates is None:
        return
    known = np.argwhere(np.append(rates, 0)[due] > 0)
    if not len(known) or not _has_gradients(group, motions.steps[: due.max()], least=ABOVE_EPS):
        return
    lengths = np.sqrt(group.modules["m"].to_numpy(dtype=float))
    ratios = [
        motions.column.step[due[m, i], m, i]
        / (
            lengths[m]
            * rates[due[m, i]]
            * first_activation_step(int(due[m, i]) + 1, beta1=beta1, beta2=beta2)
        )
        for m, i in known.tolist()
    ]
    yield FIRST_LENGTH.equal(
        1,
        float(np.median(ratios)),
        tolerance=0.02,
        basis="median over directions; Adam's eps and entries without a gradient",
        samples=len(ratios),
    )


def first_rank(group: Group) -> Iterator[Row]:
    """The update after step 1 has at most rank |M|."""
    import numpy as np

    motions = _from_zero(group)
    if motions is None or not _masks_known(group) or 1 not in group.core_steps:
        return
    kept = group.masks_of(np.array([1]))[0].sum(-1)
    sigma = group.core(1).singular_values().numpy()
    rank = (sigma > RANK_ROUNDING * sigma[:, :1]).sum(-1)
    yield FIRST_RANK.never(rank > kept)


def plain_sgd(group: Group) -> Iterator[Row]:
    """Without momentum and decay a step and a turn of the frame have the rank of the mask."""
    import torch

    motions = group.motions
    if (
        motions is None
        or group.masks is None
        or not (group.optimizer and group.optimizer.is_plain_sgd)
    ):
        return
    steps, cores = group.cores
    moving = torch.from_numpy(steps > 0)
    kept = torch.from_numpy(group.masks_of(steps[steps > 0]).sum(-1))
    core = cores[moving]
    sigma = torch.linalg.svdvals(core.change("previous"))
    yield SGD_RANK.never((sigma > RANK_ROUNDING * sigma[..., :1]).sum(-1) > 2 * kept)
    from subspace_lab import linalg

    angles = linalg.principal_angles(core.row.now(), core.row.before("previous"))
    yield SGD_ANGLES.never((angles > STILL).sum(-1) > kept)


def gauge(group: Group) -> Iterator[Row]:
    """SGD: B^T dB = dA A^T on pairs of kept directions, so ||b_i||² - ||a_i||² is conserved.

    To second order, that is: it changes by ||db_i||² - ||da_i||². Measured as the slope of the one
    side on the other. With masks per sample or token only the diagonal, i = j, is equal.
    """
    import torch

    if not group.run.recorded or group.optimizer is None:
        return
    steps, cores = group.cores
    if steps[-1] == 0 or cores.row.previous is None or cores.column.previous is None:
        return
    A_side = cores.row.previous.coordinates.mT @ cores.row.before("previous")
    B_side = cores.column.before("previous").mT @ cores.column.previous.coordinates
    if _masks_known(group):
        known = steps[steps > 0]
        kept = torch.from_numpy(group.masks_of(known))
        pairs = torch.zeros(B_side.shape, dtype=torch.bool)
        pairs[torch.from_numpy(steps > 0)] = kept[..., :, None] & kept[..., None, :]
    else:
        pairs = torch.eye(group.rank, dtype=torch.bool).expand(B_side.shape)
    a, b = A_side[pairs], B_side[pairs]
    if not bool(a.any()):
        return
    slope = float((a * b).sum() / a.square().sum())
    if group.optimizer.is_plain_sgd:
        basis = "slope; rounding of float32 weights and of gradients"
        yield GAUGE.equal(1, slope, tolerance=0.02, basis=basis, samples=len(a))
    elif group.optimizer.name == "AdamW":
        why = "a law of gradient flow and SGD: Adam scales entries one by one and breaks it"
        yield GAUGE_ADAM.indicative(1, slope, scale=0.1, why=why, samples=len(a))


def leakage(group: Group) -> Iterator[Row]:
    """Share of the growth of ||X_t - X_0||² that masked steps make: b1 (1 - q) if stationary."""
    import numpy as np

    from subspace_lab.theory.adam import leakage as predicted

    motions = group.motions
    if motions is None or group.masks is None or not _is_adamw(group):
        return
    assert group.law is not None and group.optimizer is not None
    masked = ~group.masks_of(motions.steps)
    share = predicted(keep_prob=group.law.keep_prob, beta1=group.optimizer.betas[0])
    for prediction, side in ((LEAKAGE_B, motions.column), (LEAKAGE_A, motions.row)):
        squared = side.start**2
        growth = np.diff(squared, axis=0, prepend=0)
        if squared[-1].sum() > 0:
            yield prediction.indicative(
                share,
                float(growth[masked].sum() / squared[-1].sum()),
                scale=0.25 * share,
                why="holds for stationary gradients; real ones change, and first steps differ",
                samples=masked.size,
            )


PREDICTIONS = (finite, first_step, first_moves, first_length, first_rank, plain_sgd, gauge, leakage)


def _from_zero(group: Group) -> Motions | None:
    return group.motions if group.starts_at_zero else None


def _is_adamw(group: Group) -> bool:
    return group.optimizer is not None and group.optimizer.name == "AdamW"


def _masks_known(group: Group) -> bool:
    """Whether every step's mask is known: recorded, or none at all."""
    return group.law is None or group.masks is not None


def _first(happened: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Place of the first True along the first axis; its length where there is none."""
    import numpy as np

    places: NDArray[np.int64] = np.where(happened.any(0), happened.argmax(0), len(happened))
    return places


def _samples(group: Group) -> int | None:
    """Samples of a step on all processes, under all its masks; None where it is not known."""
    batch: int | None = group.config.get("global_batch")
    if batch is None and "batch_size" in group.config:
        processes = group.run.description.get("provenance", {}).get("processes", 1)
        batch = group.config["batch_size"] * group.config.get("accumulation", 1) * processes
    return None if batch is None else batch * group.config.get("masks_per_step", 1)


def _has_gradients(group: Group, steps: NDArray[np.int64], *, least: float) -> bool:
    """Whether the entries of the gradient exceed `least` (root mean square) at all these steps.

    An extreme scaling or learning rate leaves gradients that are infinite, zero, or below Adam's
    eps and the weights' rounding: then even kept directions stand still, whatever masked them.
    Norms that were not logged are taken to be usual ones.
    """
    import numpy as np

    norms = group.gradient_norms(steps)
    sizes = group.run.modules
    enough = norms > least * (sizes["m"] * sizes["r"]).sum() ** 0.5
    return bool((np.isnan(norms) | (enough & (norms < np.inf))).all())
