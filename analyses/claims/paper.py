"""The paper's claims, what theory says of each, and what decides on them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from analyses.claims import beside_lora, gains, verdicts
from analyses.claims.evidence import Evidence, Finding


@dataclass(frozen=True)
class Claim:
    """A claim.

    Attributes:
        name: short, unique.
        claim: what the paper says, in other words.
        place: where it does.
        theory: what theory says of it.
        statements: the theorems behind that.
        finding: what a set of runs shows of it.
    """

    name: str
    claim: str
    place: str
    theory: str
    statements: str
    finding: Callable[[Evidence], Finding]


CLAIMS = (
    Claim(
        "one method",
        "Equation 2 and Algorithm 1 describe the same method.",
        "Section 3, Equation 2 and Algorithm 1",
        "They differ in what shares a mask and in the rescale; in a transformer even the "
        "second-order regularizer differs. Only the mean squared loss of a linear layer agrees, "
        "after rescaling.",
        "T7, T9, T10, T11",
        verdicts.same_method,
    ),
    Claim(
        "a subspace a step",
        "Every training step works in one subspace of its own.",
        "Section 3; Figure 1",
        "With a mask per step, successive masks share q² r directions, Jaccard index q / (2 - q). "
        "With a mask per token every direction is updated in every step.",
        "T1",
        verdicts.one_subspace_a_step,
    ),
    Claim(
        "no subspace twice",
        "Every pruning gives a different subspace.",
        "Section 1",
        "True with high probability at r >= 32 and keep_prob 0.5; at r = 8 the same masks recur "
        "all the time.",
        "T1",
        verdicts.never_twice,
    ),
    Claim(
        "half the rank",
        "Pruning half of the directions leaves half of the rank.",
        "Section 3, Rank Analysis",
        "On average: the rank is Bin(r, q). The entropy effective rank and the stable rank follow "
        "where the terms b_i a_i^T are orthogonal and equally long (both 0.50); on other spectra "
        "the stable rank falls less (Gaussian factors 0.65), and hardly changes on spiky ones "
        "(trained adapters keep 0.83 to 0.86 of it).",
        "T6",
        verdicts.half_the_rank,
    ),
    Claim(
        "two masks are one",
        "Separate masks on A and B are equivalent to a single one.",
        "Section 3, Equivalence",
        "Draw by draw they are; as a law they keep q² instead of q, with three times the penalty "
        "at q = 0.5.",
        "T17",
        verdicts.two_masks,
    ),
    Claim(
        "only the kept learn",
        "Only retained parameters take part in an update.",
        "Section 3, Training and Inference",
        "True of plain SGD with a mask per step. AdamW's momentum moves masked directions: if "
        "gradients are stationary, they make b1 (1 - q) of the mean displacement (45 % at q = "
        "0.5) and b1² (1 - q) of the squared step length (40.5 %).",
        "T15, T16",
        verdicts.only_the_kept,
    ),
    Claim(
        "an ensemble",
        "Inference with all directions acts like an ensemble of the masked models.",
        "Section 3, Training and Inference",
        "With rescale 1/q and a (log-)linear adapter it is the geometric ensemble, and the gain "
        "over single masks is the regularizer under another name, which training makes small. "
        "Plain LoRA gains over its masked parts, too: what masks in training add is the "
        "difference (LoRA's own gain depends on the gauge in which training left B and A). Without "
        "rescale the full model overshoots.",
        "T9, T12",
        gains.like_an_ensemble,
    ),
    Claim(
        "not dropout",
        "The method differs from classical dropout.",
        "Section 3, Easy Implementation",
        "With a mask per token it is dropout on the hidden units of the two-layer linear network "
        "B A, with dropout's nuclear-norm regularizer. With a mask per step all tokens share one "
        "draw, and without a rescale the mean is another.",
        "T7",
        verdicts.unlike_dropout,
    ),
    Claim(
        "a moving subspace",
        "It overcomes LoRA's static low-rank subspace.",
        "Abstract; Sections 1 and 3",
        "To first order it takes LoRA's own directions, in LoRA's frame, and ends at rank r. New "
        "directions enter by frame drift only, and LoRA's frame drifts too.",
        "T15",
        verdicts.static_subspace,
    ),
    Claim(
        "by subspaces",
        "The gain comes from learning in one subspace after another.",
        "Abstract; Section 4.4",
        "Masks per step, sample and token have one penalty in a linear layer, and only those per "
        "step have a subspace to learn in. A search over subspaces predicts that token masks gain "
        "nothing, regularization that all gain alike.",
        "T7, T10",
        gains.by_subspaces,
    ),
    Claim(
        "more directions",
        "Learning in many subspaces overcomes the bottleneck of a fixed low rank.",
        "Abstract; Section 3",
        "The update's rank is r, with masks or without. In a linear model with squared loss they "
        "lower its effective ranks; elsewhere they may raise them, which says nothing about "
        "generalization.",
        "T8, T15",
        beside_lora.more_directions,
    ),
    Claim(
        "less rank is better",
        "Lowering the rank in training improves the result.",
        "Section 5; Table 5",
        "As shrinkage it helps if and only if there is noise to shrink; with enough clean data it "
        "hurts.",
        "T8",
        gains.better_than_lora,
    ),
    Claim(
        "a mild pruning",
        "Pruning 30 % of the directions helps most; half of them and more is too much.",
        "Section 4.4, Effect of Pruning Rate; Figure 2",
        "The penalty is (1 - q) / q times that of half the directions kept, so the best keep_prob "
        "falls with the noise that there is to shrink: none is best everywhere.",
        "T7, T8",
        gains.milder_is_better,
    ),
    Claim(
        "less gain at small rank",
        "The gain shrinks for small ranks.",
        "Section 4.4, Parameter Scalability; Figure 3",
        "Yes, as the threshold (1 - q) mean(sigma) grows when fewer singular values are kept: "
        "over-shrinkage, not a lack of subspaces.",
        "T8",
        gains.less_gain_at_small_rank,
    ),
    Claim(
        "better on every task",
        "It beats LoRA on all tasks.",
        "Abstract; Section 5",
        "The paper's own tables have tasks on which LoRA is ahead. Runs test it by an exact match "
        "above LoRA's on every task, corrected for their number.",
        "arithmetic",
        gains.all_tasks,
    ),
    Claim(
        "significantly better",
        "The improvements are significant.",
        "Section 4.4, Effect of Pruning Module",
        "One seed cannot show that. For test items alone the average gains on commonsense have "
        "z = 1.1 (LLaMA2) and 1.9 (LLaMA3) if both models answer independently, 1.6 and 2.6 if "
        "their answers correlate by 0.5. The spread over seeds comes on top: at 0.77 points the "
        "difference of two runs has a standard error of 1.09, more than either gain (0.52, 0.81).",
        "arithmetic",
        gains.better_than_lora,
    ),
    Claim(
        "at LoRA's settings",
        "It beats LoRA with no setting changed but the pruning rate.",
        "Section 4.1",
        "One learning rate shows which method it suits. Under AdamW masks shorten steps, by "
        "sqrt(q) where their noise dominates the gradient, so a rate too high for LoRA may suit "
        "them.",
        "T16",
        gains.at_loras_settings,
    ),
    Claim(
        "no extra cost",
        "It has LoRA's parameters, and costs no time in training or inference.",
        "Abstract; Section 5",
        "Parameters and inference are LoRA's. In training, masks are drawn and multiplied with r "
        "numbers for each token, which is little where the model is large.",
        "arithmetic",
        beside_lora.no_extra_cost,
    ),
)
