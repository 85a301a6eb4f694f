"""The law of the gates on rank directions: how they are drawn, and what follows from that.

    bernoulli    each direction is kept with probability q (DropLoRA)
    exact-k      exactly q r directions are kept
    antithetic   a Bernoulli(1/2) mask, then its complement
    two          two Bernoulli masks in turn
    blocks       blocks of neighboring directions are kept or dropped as one
    prefix       the first b directions are kept, b random (DyLoRA)
    fixed        the mean of prefixes over nested ranks, in all steps (MatryoshkaLoRA)
    gaussian     numbers N(q, q (1 - q)) in place of masks
    haar         a projector on q r random directions

A law is one class: how it turns uniform numbers into gates, the mean and covariance of the gates,
and for masks the distributions of the number of kept directions and of the overlap of two
independent masks. A new law is a subclass in `LAWS`, and a test of these by enumeration.
"""

from __future__ import annotations

import inspect
from typing import Any

from subspace_lab.errors import UserError
from subspace_lab.theory.laws.base import Granularity, MaskLaw, Rescale, rescale_name
from subspace_lab.theory.laws.continuous import Gaussian, Haar
from subspace_lab.theory.laws.masks import Antithetic, Bernoulli, Blocks, ExactK, TwoInTurn
from subspace_lab.theory.laws.nested import Fixed, Prefix
from subspace_lab.theory.laws.schedule import Schedule

__all__ = [
    "DEFAULT_LAW", "LAWS", "Antithetic", "Bernoulli", "Blocks", "ExactK", "Fixed", "Gaussian",
    "Granularity", "Haar", "MaskLaw", "Prefix", "Rescale", "Schedule", "TwoInTurn", "mask_law",
    "rescale_name",
]  # fmt: skip

LAWS: dict[str, type[MaskLaw]] = {
    "bernoulli": Bernoulli,
    "exact-k": ExactK,
    "antithetic": Antithetic,
    "two": TwoInTurn,
    "blocks": Blocks,
    "prefix": Prefix,
    "fixed": Fixed,
    "gaussian": Gaussian,
    "haar": Haar,
}
"""The laws by their names in settings and records."""

DEFAULT_LAW = Bernoulli(0.5)
"""The law by which a run without masks is masked afterwards."""


def mask_law(keep_prob: float, *, sampling: str = "bernoulli", **settings: Any) -> MaskLaw:
    """Make the law that settings or a record name.

    Args:
        keep_prob: see `MaskLaw`, as for `settings`.
        sampling: name of the law in `LAWS`.
        settings: granularity, rescale, seed, dwell, schedule, schedule_steps, keep_prob_pattern,
            shared, and those of the law alone.

    Raises:
        UserError: if there is no such law, it has no such setting, or one is out of range.
    """
    if sampling not in LAWS:
        raise UserError(f"`sampling` must be one of {', '.join(LAWS)}, not {sampling!r}")
    kind = LAWS[sampling]
    if unknown := sorted(settings.keys() - inspect.signature(kind).parameters.keys()):
        raise UserError(f"`sampling` {sampling} has no setting {', '.join(unknown)}: leave it out")
    return kind(keep_prob, **settings)
