"""The law that a run says its masks followed, and its moments."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from subspace_lab.adapters.mask_law import MaskLaw
    from subspace_lab.runs.run import Run
    from subspace_lab.theory import mask_law

UNMASKED: dict[str, Any] = {
    "keep_prob": 0.5,
    "granularity": "step",
    "rescale": True,
    "sampling": "bernoulli",
}
"""The law by which a run without masks is masked afterwards."""


def law_of(run: Run) -> MaskLaw | None:
    """Give the law of the run's masks; None for a run without masks."""
    from subspace_lab.adapters.mask_law import MaskLaw

    return None if run.mask_law is None else MaskLaw(**run.mask_law)


def moments_of(law: MaskLaw, rank: int) -> mask_law.MaskMoments:
    """Mean and covariance of the masks (r,) that a law draws."""
    from subspace_lab.theory import mask_law

    if law.sampling == "exact-k":
        return mask_law.exact_k(rank, kept=law.kept_exactly(rank))
    return mask_law.bernoulli(rank, keep_prob=law.keep_prob)
