"""What angles and overlaps are by chance: random subspaces, and random masks of a random frame.

Two independent uniform (Haar) subspaces of R^N with dimensions a and b have cos^2 theta_i
distributed as a Jacobi ensemble (Absil, Edelman and Koev 2006, Linear Algebra Appl. 414). Masked
parts of a Gaussian frame with |I| directions in common behave like that after deflation: |I| zero
angles, then independent uniform subspaces of R^(n - |I|).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import scipy
import torch
from jaxtyping import Float64
from torch import Tensor


@dataclass(frozen=True)
class AngleMoments:
    """Mean and variance of sum cos^2 theta_i over the principal angles."""

    mean: float
    variance: float


@dataclass(frozen=True)
class NullOverlap:
    """Expectations over pairs of independent masks of one Gaussian frame.

    Attributes:
        squared_cosines: E sum cos^2 theta_i; an empty mask counts as 0.
        phi: E of the normalized overlap, given that neither mask is empty.
    """

    squared_cosines: float
    phi: float


def random_subspace(
    n: int, k: int, *, batch: tuple[int, ...] = (), generator: torch.Generator | None = None
) -> Float64[Tensor, "*batch {n} {k}"]:
    """Orthonormal frames (..., n, k) with the uniform (Haar) distribution.

    The Q of a Gaussian matrix's QR factorization with a positive diagonal in R (Mezzadri 2007,
    Notices of the AMS 54(5)).
    """
    gaussian = torch.randn(*batch, n, k, dtype=torch.float64, generator=generator)
    Q, R = torch.linalg.qr(gaussian)
    frames: Tensor = Q * R.diagonal(dim1=-2, dim2=-1).sign()[..., None, :]
    return frames


def random_angle_moments(n: int, a: int, b: int, *, shared: int = 0) -> AngleMoments:
    """Moments of sum cos^2 theta_i for random subspaces with some directions in common.

    With N = n - shared: E = shared + a b / N,
    Var = 2 a b (N - a)(N - b) / (N^2 (N - 1)(N + 2)).

    Args:
        n: dimension of the ambient space.
        a: dimension of the first subspace without the shared directions.
        b: dimension of the second one without them.
        shared: number of directions in common.

    Raises:
        ValueError: if a subspace does not fit into the ambient space.

    >>> random_angle_moments(4, 1, 1).mean
    0.25
    """
    N = n - shared
    if min(a, b, shared) < 0 or max(a, b) > N:
        raise ValueError(f"subspaces of dimensions {shared} + {a} and {shared} + {b} in R^{n}")
    if a * b == 0:
        return AngleMoments(mean=float(shared), variance=0.0)
    # max: N = 1 leaves no freedom, and the numerator is 0.
    variance = 2 * a * b * (N - a) * (N - b) / (N**2 * max(N - 1, 1) * (N + 2))
    return AngleMoments(mean=shared + a * b / N, variance=variance)


def jacobi_edge(n: int, a: int, b: int) -> float:
    """Upper edge of the bulk of cos^2 theta_i for random a- and b-dimensional subspaces of R^n.

    (sqrt(a (n - b)) + sqrt(b (n - a)))^2 / n^2, the limit of the largest cos^2 for large n at
    fixed a / n and b / n; 1 where a + b >= n, since the subspaces then meet.

    >>> jacobi_edge(100, 50, 50)
    1.0
    """
    if a + b >= n:
        return 1.0
    return (math.sqrt(a * (n - b)) + math.sqrt(b * (n - a))) ** 2 / n**2


def null_overlap(n: int, kept_pmf: Float64[np.ndarray, " r_plus_1"]) -> NullOverlap:
    """Expected overlap of two independent masks of a Gaussian frame (n, r).

    Given i shared directions and a, b further ones, E sum cos^2 = i + a b / (n - i), and
    phi = sum cos^2 / (i + min(a, b)). Both are averaged over the law of (i, a, b): a mask keeps k
    directions with probability p_k, each subset of k directions with p_k / C(r, k), so that

        P(i, a, b) = r! / (i! a! b! (r - i - a - b)!)  p_{i+a} / C(r, i+a)  p_{i+b} / C(r, i+b).

    For Bernoulli masks this is multinomial, and the first average is also
    E_{i ~ Bin(r, q^2)} [i + (r - i)(r - i - 1) s^2 / (n - i)] with s = q / (1 + q).

    Args:
        n: length of the frame's columns, n >= r.
        kept_pmf: probabilities p_0, ..., p_r of the number of directions that a mask keeps.

    Raises:
        ValueError: if r > n.

    >>> null_overlap(4096, np.eye(33)[32]).phi
    1.0
    """
    r = len(kept_pmf) - 1
    if r > n:
        raise ValueError(f"{r} independent directions do not fit into R^{n}")
    i, a, b = (grid.ravel() for grid in np.indices((r + 1, r + 1, r + 1), dtype=np.int64))
    i, a, b = (count[i + a + b <= r] for count in (i, a, b))
    counts = np.stack([i, a, b, r - i - a - b])
    arrangements = np.exp(scipy.special.gammaln(r + 1) - scipy.special.gammaln(counts + 1).sum(0))
    of_one_mask = kept_pmf / scipy.special.binom(r, np.arange(r + 1))
    weight = arrangements * of_one_mask[i + a] * of_one_mask[i + b]
    squared_cosines = i + a * b / np.maximum(n - i, 1)
    smaller = i + np.minimum(a, b)
    present = smaller > 0
    phi = weight[present] @ (squared_cosines[present] / smaller[present])
    return NullOverlap(
        squared_cosines=float(weight @ squared_cosines), phi=float(phi / weight[present].sum())
    )
