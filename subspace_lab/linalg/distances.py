"""Distances between subspaces and their overlaps, of one pair, of leading parts, of all masks."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from .angles import principal_angles
from .bases import dependence_tolerance, orthonormal_basis, unit_frame
from .triangular import compressed


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
    """Normalized Grassmann overlap of range(X) and range(Y), in [0, 1].

    phi = ||Q_X^T Q_Y||_F^2 / min(k, l) = mean of cos^2 theta_i over the principal angles (Hu et
    al. 2022, LoRA, Section 7.2 and Appendix G). Where columns are dependent, k and l are numerical
    ranks; nan where a space is {0}.
    """
    return principal_angles(X, Y).cos().square().nanmean(-1)


def grassmann_overlap(
    U: Float[Tensor, "*#batch n k"], V: Float[Tensor, "*#batch n l"]
) -> Float64[Tensor, "*out k l"]:
    """Normalized overlap of the i leading columns of U with the j leading ones of V, for all i, j.

    phi(i, j) = ||U_i^T V_j||_F^2 / min(i, j) at [..., i - 1, j - 1] (Hu et al. 2022, LoRA, Section
    7.2, equation 4). One product and two cumulative sums.

    Args:
        U: orthonormal columns, such as left singular vectors in descending order (..., n, k).
        V: orthonormal columns (..., n, l).

    Returns:
        (..., k, l) in float64.

    Raises:
        ValueError: if the columns of U or V are not orthonormal to 1e-4.
    """
    U, V = U.to(torch.float64), V.to(torch.float64)
    for name, Q in (("U", U), ("V", V)):
        identity = torch.eye(Q.shape[-1], dtype=Q.dtype, device=Q.device)
        if not torch.allclose(Q.mT @ Q, identity, rtol=0, atol=1e-4):
            raise ValueError(f"the columns of {name} must be orthonormal")
    energy = (U.mT @ V).square().cumsum(-1).cumsum(-2)
    i = torch.arange(1, U.shape[-1] + 1, device=U.device)[:, None]
    j = torch.arange(1, V.shape[-1] + 1, device=V.device)
    return energy / torch.minimum(i, j)


def pairwise_overlap(X: Float[Tensor, "d r"], masks: Bool[Tensor, "T r"]) -> Float64[Tensor, "T T"]:
    """Normalized overlap of range(X diag(M_s)) and range(X diag(M_t)) for all pairs of T masks.

    phi = tr(P_s P_t) / min(rank_s, rank_t) with the orthogonal projectors P: one product of a
    T x d^2 matrix with its transpose. A core's R serves for X as well as the frame itself.

    Args:
        X: the frame, its columns the rank directions (d, r).
        masks: kept directions (T, r), True = kept.

    Returns:
        (T, T) in float64; nan in the rows and columns of masks that keep no direction.
    """
    frame, _ = unit_frame(compressed(X))
    frames = frame * masks[:, None, :]
    bases, ranks = orthonormal_basis(frames, dependence_tolerance(frame).expand(len(masks)))
    projectors = (bases @ bases.mT).flatten(1)
    return projectors @ projectors.mT / torch.minimum(ranks[:, None], ranks)
