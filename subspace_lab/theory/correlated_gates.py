"""T11 for gates that are drawn together: the second order takes their covariance, not its trace.

For gates g of mean g0 and any law, masks or not, Taylor's theorem about g0 gives

    E L(g) = L(g0) + (1/2) sum_ij Cov(g)_ij L_ij + ...,

the trace of Cov(g) H. Independent gates leave (1/2) sum_i Var(g_i) L_ii (`gates.gate_trace`). Gates
of one variance that are correlated have another penalty, however equal their variances: with
exactly k of r directions kept the sum of the gates is fixed, and

    tr(C H) = (mu2 / (r - 1)) (r tr H - 1^T H 1),   mu2 = s^2 q (1 - q),   q = k / r,

which lacks the curvature along the scale of the update, 1^T H 1. Laws of one total variance tr C
are therefore not matched in penalty. Antithetic masks are correlated between steps only: each has
the penalty of independent gates.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from subspace_lab.theory.gates import GateTrace, Loss, gate_trace


def covariance_trace(
    loss: Loss,
    gates: Sequence[Tensor],
    covariance: Float[Tensor, "r r"],
    *,
    probes: int | None = None,
    generator: torch.Generator | None = None,
) -> GateTrace:
    """Tr(Cov(g) H) of H = d^2 loss / dg^2 at `gates`; half of it is the second order of the gap.

    With C = F F^T it is the trace of the Hessian of e -> loss(g + F e) at e = 0.

    Args:
        loss: as in `gate_trace`.
        gates: the mean gates (..., r), one tensor per layer.
        covariance: C, of the gates that one draw gives to r directions, such as
            `MaskLaw.gate_moments(r).covariance`; draws of layers and leading axes are independent.
        probes: as in `gate_trace`.
        generator: as in `gate_trace`.

    >>> gates, C = [torch.ones(2).double()], torch.tensor([[1.0, -1.0], [-1.0, 1.0]])
    >>> covariance_trace(lambda g: g.sum() ** 2, gates, C).total
    0.0
    """
    values, vectors = torch.linalg.eigh(covariance.double())
    root = (vectors * values.clamp_min(0).sqrt()) @ vectors.mT

    def of_noise(*noise: Tensor) -> Tensor:
        return loss(*(g + e @ root.to(g) for g, e in zip(gates, noise, strict=True)))

    still = [torch.zeros_like(gate) for gate in gates]
    return gate_trace(of_noise, still, probes=probes, generator=generator)
