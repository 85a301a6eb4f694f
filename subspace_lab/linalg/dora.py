"""The whole update of a DoRA module, which its factors alone do not give."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from subspace_lab.linalg.factors import Factors

_ROWS = 1024  # rows of the base weight that are held in float64 at a time


@dataclass(frozen=True, eq=False)
class DoraUpdate:
    """DoRA's whole update, dW = diag(c) (W0 + scaling * B A) - W0.

    That is a scaling of the base weight's rows and a low-rank term,
    dW = diag(c - 1) W0 + scaling * diag(c) B A, and of full rank in general.

    Attributes:
        row_scaling: c, (m,) float64, c_i = magnitude_i / ||(W0 + scaling * B A)_i||_2.
        factors: B, A and the scaling.
    """

    row_scaling: Float[Tensor, " m"]
    factors: Factors

    def dense(self, base_weight: Float[Tensor, "m n"]) -> Float[Tensor, "m n"]:
        """Form the whole update in float64, m n numbers."""
        W0, B, A = (matrix.double() for matrix in (base_weight, self.factors.B, self.factors.A))
        return self.row_scaling[:, None] * (W0 + self.factors.scaling * (B @ A)) - W0


def dora_whole_update(
    base_weight: Float[Tensor, "m n"], factors: Factors, magnitude: Float[Tensor, " outputs"]
) -> DoraUpdate:
    """Join a DoRA module's direction and magnitude (Liu et al. 2024, Equation 5).

    The paper writes W with one output per column; here, as in PEFT, outputs are rows, so that
    its column-wise norm is the norm of a row.

    Args:
        base_weight: W0 in (out_features, in_features) orientation; see `weight_matrix`.
        factors: the update of the direction, scaling * B A.
        magnitude: the learned norm of each row.

    Raises:
        ValueError: if the shapes do not fit together.
    """
    m, n = factors.B.shape[0], factors.A.shape[1]
    if base_weight.shape != (m, n) or magnitude.shape != (m,):
        raise ValueError(
            f"{factors.module}: the base weight {tuple(base_weight.shape)} and the magnitude "
            f"{tuple(magnitude.shape)} must be ({m}, {n}) and ({m},); weight_matrix turns a "
            "stored weight"
        )
    A = factors.scaling * factors.A.double()
    blocks = zip(torch.split(base_weight, _ROWS), torch.split(factors.B, _ROWS), strict=True)
    norms = [torch.linalg.vector_norm(W.double() + B.double() @ A, dim=1) for W, B in blocks]
    return DoraUpdate(magnitude.double() / torch.cat(norms), factors)
