"""Distances and overlaps of subspaces."""

from __future__ import annotations

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from .angles import principal_angles


def chordal_distance(angles: Float[Tensor, "*batch q"]) -> Float64[Tensor, "*batch"]:
    """sqrt(sum sin^2 theta_i) of principal angles (..., q); nan padding is left out.

    For equal dimensions it is ||P_X - P_Y||_F / sqrt(2) with the orthogonal projectors.
    """
    return angles.to(torch.float64).sin().square().nansum(-1).sqrt()


def geodesic_distance(angles: Float[Tensor, "*batch q"]) -> Float64[Tensor, "*batch"]:
    """sqrt(sum theta_i^2), the arc length on the Grassmann manifold; nan padding is left out."""
    return angles.to(torch.float64).square().nansum(-1).sqrt()


def overlap(
    X: Float[Tensor, "*#batch n k"], Y: Float[Tensor, "*#batch n l"]
) -> Float64[Tensor, "*out"]:
    """Normalised Grassmann overlap of range(X) and range(Y), in [0, 1].

    phi = ||Q_X^T Q_Y||_F^2 / min(k, l) = mean of cos^2 theta_i over the principal angles (Hu et
    al. 2022, LoRA, Section 7.2 and Appendix G). Where columns are dependent, k and l are numerical
    ranks; nan where a space is {0}.
    """
    return principal_angles(X, Y).cos().square().nanmean(-1)
