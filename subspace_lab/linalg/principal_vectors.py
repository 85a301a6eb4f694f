"""Principal vectors of two subspaces."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from .angles import principal_angles
from .bases import reject, unit_frame


@dataclass(frozen=True)
class PrincipalVectors:
    """Orthonormal x_i in range(X) and y_i in range(Y) with x_i . y_j = cos(theta_i) delta_ij.

    Attributes:
        angles: theta, ascending radians (q,).
        X: the x_i as columns (n, q).
        Y: the y_i as columns (n, q).
    """

    angles: Float[Tensor, " q"]
    X: Float[Tensor, "n q"]
    Y: Float[Tensor, "n q"]


def principal_vectors(X: Float[Tensor, "n k"], Y: Float[Tensor, "n l"]) -> PrincipalVectors:
    """Principal vectors of range(X) and range(Y).

    Pairs below 45 degrees come from the singular vectors of (I - Q_X Q_X^T) Q_Y, where small sines
    keep nearly equal directions apart; the others from those of Q_X^T Q_Y on the complements of
    the first (Bjorck and Golub 1973, Section 3, use either one for all pairs).

    Args:
        X: independent columns that span the first space (n, k).
        Y: independent columns that span the second space (n, l).

    Returns:
        A `PrincipalVectors` with q = min(k, l), in float64.

    Raises:
        ValueError: if the columns of X or of Y are numerically dependent.
    """
    (X, full_x), (Y, full_y) = unit_frame(X), unit_frame(Y)
    if not (full_x and full_y):
        raise ValueError("principal vectors need independent columns in both X and Y")
    angles = principal_angles(X, Y)
    Q_x, Q_y = torch.linalg.qr(X).Q, torch.linalg.qr(Y).Q
    near = int((angles < math.pi / 4).sum())

    from_sine = torch.linalg.svd(reject(Q_y, Q_x)).Vh.mT.flip(-1)  # (l, l), ascending angle
    near_y, rest_y = Q_y @ from_sine[:, :near], Q_y @ from_sine[:, near:]
    near_x, rest_x = torch.linalg.qr(Q_x.mT @ near_y, mode="complete").Q.tensor_split(
        [near], dim=-1
    )
    near_x, rest_x = Q_x @ near_x, Q_x @ rest_x
    near_x = near_x * (near_x * near_y).sum(0).sign()
    U, _, Vh = torch.linalg.svd(rest_x.mT @ rest_y, full_matrices=False)
    return PrincipalVectors(
        angles=angles,
        X=torch.cat([near_x, rest_x @ U], dim=-1),
        Y=torch.cat([near_y, rest_y @ Vh.mT], dim=-1),
    )
