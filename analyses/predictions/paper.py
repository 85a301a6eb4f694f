"""The paper's claims, what theory says of each, and who hears the runs on it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from analyses.predictions import judges
from analyses.predictions.evidence import Evidence, Finding


@dataclass(frozen=True)
class Claim:
    """A claim.

    Attributes:
        name: short, unique.
        claim: what the paper says, in other words.
        theory: what theory says of it.
        statements: the theorems behind that.
        judge: hears the runs.
    """

    name: str
    claim: str
    theory: str
    statements: str
    judge: Callable[[Evidence], Finding]


CLAIMS = (
    Claim(
        "one method",
        "Equation 2 and Algorithm 1 describe the same method.",
        "They differ in what shares a mask and in the rescale; in a transformer even the "
        "second-order regulariser differs. Only the mean squared loss of a linear layer agrees, "
        "after rescaling.",
        "T7, T9, T10, T11",
        judges.same_method,
    ),
    Claim(
        "a subspace a step",
        "Every training step works in one subspace of its own.",
        "With a mask per step, successive masks share q² r directions, Jaccard index q / (2 - q). "
        "With a mask per token every direction is updated in every step.",
        "T1",
        judges.one_subspace_a_step,
    ),
    Claim(
        "no subspace twice",
        "Every pruning gives a different subspace.",
        "True with high probability at r >= 32 and keep_prob 0.5; at r = 8 masks come back all the "
        "time.",
        "T1",
        judges.never_twice,
    ),
    Claim(
        "half the rank",
        "Pruning half of the directions leaves half of the rank.",
        "On average: the rank is Bin(r, q). The entropy effective rank follows for flat spectra "
        "only, the stable rank hardly changes.",
        "T6",
        judges.half_the_rank,
    ),
    Claim(
        "two masks are one",
        "Separate masks on A and B are equivalent to a single one.",
        "Draw by draw they are; as a law they keep q² instead of q, with three times the penalty "
        "at q = 0.5.",
        "T17",
        judges.two_masks,
    ),
    Claim(
        "only the kept learn",
        "Only retained parameters take part in an update.",
        "True of plain SGD with a mask per step. AdamW's momentum moves masked directions, "
        "b1 (1 - q) of the motion (45 % at q = 0.5) if gradients are stationary.",
        "T15, T16",
        judges.only_the_kept,
    ),
    Claim(
        "an ensemble",
        "Inference with all directions acts like an ensemble of the masked models.",
        "With rescale 1/q and a (log-)linear adapter it is the geometric ensemble, and the gain "
        "over single masks is the regulariser under another name. Without rescale it overshoots.",
        "T9, T12",
        judges.like_an_ensemble,
    ),
    Claim(
        "not dropout",
        "The method differs from classical dropout.",
        "It is dropout on the hidden units of the two-layer linear network B A, with dropout's "
        "nuclear-norm regulariser.",
        "T7",
        judges.unlike_dropout,
    ),
    Claim(
        "a moving subspace",
        "It overcomes LoRA's static low-rank subspace.",
        "To first order it takes LoRA's own directions, in LoRA's frame, and ends at rank r. New "
        "directions enter by frame drift only, and LoRA's frame drifts too.",
        "T15",
        judges.static_subspace,
    ),
    Claim(
        "less rank is better",
        "Lowering the rank in training improves the result.",
        "As shrinkage it helps if and only if there is noise to shrink; with enough clean data it "
        "harms.",
        "T8",
        judges.better_than_lora,
    ),
    Claim(
        "less gain at small rank",
        "The gain shrinks for small ranks.",
        "Yes, as the threshold (1 - q) mean(sigma) grows when fewer singular values are kept: "
        "over-shrinkage, not a lack of subspaces.",
        "T8",
        judges.less_gain_at_small_rank,
    ),
    Claim(
        "better on every task",
        "It beats LoRA on all tasks.",
        "The paper's own tables have tasks on which LoRA is ahead.",
        "arithmetic",
        judges.all_tasks,
    ),
    Claim(
        "significantly better",
        "The improvements are significant.",
        "One seed cannot show that: item sampling alone gives the average gains z = 1.1 and 1.9.",
        "arithmetic",
        judges.better_than_lora,
    ),
)
