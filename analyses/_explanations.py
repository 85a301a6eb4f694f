"""What each figure of the report shows, in plain words."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Explanation:
    """The words around one figure.

    Attributes:
        analysis: the module that makes its table.
        question: what it asks.
        reading: how to read the figure, as HTML.
        why_missing: why a run may have no such table.
    """

    analysis: str
    question: str
    reading: str
    why_missing: str = "it was not computed"


EXPLANATIONS = (
    Explanation(
        "learning_curves",
        "Did the model learn?",
        "Top: the loss of each training batch, under that step's masks where a run is masked, so a "
        "masked run's curve lies higher than its full model would; batches of rows of like length, "
        "as in the demo, differ in difficulty and make it jagged. Below: loss and exact match of "
        "the full model on rows that it never trains on.",
    ),
    Explanation(
        "effective_rank",
        "How many directions does the update use?",
        "A matrix of rank r can still put nearly all its weight into one direction. Effective "
        "ranks count directions by weight, each in its own way, which is why they differ: the "
        "<i>entropy</i> effective rank is exp of the entropy of σ/Σσ, the <i>stable</i> rank is "
        "‖ΔW‖²<sub>F</sub>/σ₁², <i>participation</i> is (Σσ²)²/Σσ⁴, <i>energy90</i> counts "
        "directions until 90 % of Σσ² is reached, <i>numerical</i> counts σ above rounding. "
        "Dotted: keep_prob × r, what a mask keeps on average. It predicts the numerical rank of "
        "the masked update, and the other measures for flat spectra only; on spectra as training "
        "makes them the stable rank falls far less.",
    ),
    Explanation(
        "subspace_angles",
        "How far apart are the subspaces of successive masks?",
        "Each mask keeps some rows of A, which span a subspace. Two successive masks share the "
        "rows that both keep: there the angle is exactly zero. The other directions are nearly "
        "perpendicular, as random directions in a space of hundreds of dimensions are (dotted: the "
        "random null). This jump is drawn by coin flips; learning has no part in it.",
        "its masks belong to no step (plain LoRA has none, token masks are drawn per token)",
    ),
    Explanation(
        "frame_drift",
        "How fast do the directions themselves turn?",
        "The angle between the row space of A (or the column space of B) now and one step ago, or "
        "at the start, all directions counted. This is the only way in which new directions enter. "
        "<i>Leakage</i> is the share of a step's squared length that lies on masked directions: "
        "their gradient is exactly zero, but Adam's momentum moves them all the same.",
    ),
    Explanation(
        "regulariser",
        "What do masks penalise, and does training follow?",
        "On average over masks, a linear layer is trained with a penalty on R, the sum over rank "
        "directions of ‖bᵢ‖²·‖aᵢ‖². The same ΔW can be written with larger or smaller R: dashed is "
        "the least, ‖ΔW‖<sub>*</sub>²/r, where all directions are alike. Masked runs are predicted "
        "to come closer to it than plain LoRA. Middle: both relative to the size of the update. "
        "Bottom: the squared size of the update under the mask that was drawn next, over its mean "
        "over all masks, of which R is a part; chance leaves 95 % of the steps inside the band.",
    ),
    Explanation(
        "merged_spectra",
        "What does the update do to the model's own weights?",
        "Singular values of the base weight, the update, and their sum; the size of the update "
        "relative to the weight; and <i>intruders</i>, leading singular vectors of the merged "
        "weight that resemble none of the base's.",
    ),
    Explanation(
        "ensemble_vs_single",
        "Is the full model an ensemble of its masked parts?",
        "Top: loss on held-out rows when the update is scaled by c at inference (c = 1 is what "
        "everybody uses, c = 0 is the base). A minimum beyond 1 says that masks shrank the "
        "update; dotted marks: the scale that theory predicts for a linear layer. Middle: how much "
        "single masks and two sorts of mask ensemble lose against the full model; the dark bar is "
        "an identity of theory (geometric ensemble plus Jensen gap) and must pass through the "
        "single masks' mean. Bottom: exact match of each.",
    ),
    Explanation(
        "gate_expansion",
        "What do random masks cost the trained model, and why?",
        "The gap between the mean loss under random gates and the loss under their mean, on a few "
        "held-out rows, beside the second order of its expansion: the regulariser that masks "
        "amount to in a deep network. Hollow markers: the second order is not shown to stand "
        "for the gap, because higher orders are not small or the masks are too few.",
        "it was left out to save time",
    ),
    Explanation(
        "mask_theory",
        "Do the runs do what theory says?",
        "Each row is a prediction that the record can test: how far the measurement lies from it, "
        "in units of its tolerance. Filled marks inside the band agree; hollow ones rest on "
        "assumptions that a real run does not meet, and get no verdict.",
    ),
)

CLAIMS_READING = (
    "What theory says of each claim, and what these few runs show. A verdict never says more than "
    "the runs do: one seed each, a small model and a small task."
)
