"""Gates that are no masks: Gaussian numbers, and random projectors of the rank dimension.

They show what is special about dropping directions: Gaussian gates have the mean and covariance of
Bernoulli masks and drop nothing; Haar projectors drop as many directions as exact-k masks, but in a
random basis, so that no direction is singled out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from subspace_lab.theory import mask_moments
from subspace_lab.theory.laws.base import MaskLaw, Rescale
from subspace_lab.theory.laws.masks import kept_directions
from subspace_lab.theory.mask_moments import MaskMoments

SMALLEST_UNIFORM = 2.0**-25
"""What a uniform number 0 is taken for: half the spacing of torch's numbers in fp32."""


@dataclass(frozen=True)
class Gaussian(MaskLaw):
    """Independent gates N(q, q (1 - q)), the first two moments of Bernoulli masks.

    With the rescale `keep_prob` they are N(1, (1 - q) / q): Gaussian dropout (Srivastava et al.
    2014, section 10) of the rank dimension.
    """

    sampling: str = field(default="gaussian", init=False)
    binary: ClassVar[bool] = False
    independent_gates: ClassVar[bool] = True
    rescales: ClassVar[tuple[Rescale, ...]] = ("none", "keep_prob")

    def draw(self, uniform: Any) -> Tensor:
        """Turn uniform numbers into normal ones."""
        q = self.keep_prob
        return _normal(uniform) * math.sqrt(q * (1 - q)) + q

    def moments(self, rank: int) -> MaskMoments:
        """E[d] = q, Cov(d) = q (1 - q) I."""
        return mask_moments.bernoulli(rank, keep_prob=self.keep_prob)


@dataclass(frozen=True)
class Haar(MaskLaw):
    """A projector P = Q Q^T on k = q r random directions of R^r, Q uniform among frames (r, k).

    D = P acts on the r-dimension of A's output. With the rescale `keep_prob` it is (r / k) P, of
    mean I. Its second moment is `theory.gauge.haar_energy`: E tr(P H_B P H_A).
    """

    sampling: str = field(default="haar", init=False)
    binary: ClassVar[bool] = False
    diagonal: ClassVar[bool] = False
    rescales: ClassVar[tuple[Rescale, ...]] = ("none", "keep_prob")

    def check_rank(self, rank: int) -> None:
        """Raise UserError if q r is not a whole number."""
        kept_directions(self, rank)

    def noise_shape(self, rank: int) -> tuple[int, ...]:
        """Give (r, k): the numbers of which Q is made."""
        return (rank, kept_directions(self, rank))

    def draw(self, uniform: Any) -> Tensor:
        """Give P (..., r, r) of the columns of a Gaussian matrix (..., r, k)."""
        Q: Tensor = torch.linalg.qr(_normal(uniform)).Q
        return Q @ Q.mT

    def moments(self, rank: int) -> MaskMoments:
        """Those of P's diagonal: E = q, Var P_ii = 2 k (r - k) / (r^2 (r + 2)), sum P_ii = k."""
        return mask_moments.haar_diagonal(rank, kept=kept_directions(self, rank))


def _normal(uniform: Any) -> Tensor:
    """Turn uniform numbers in [0, 1) into standard normal ones, by the quantile function."""
    normal: Tensor = torch.special.ndtri(torch.as_tensor(uniform).clamp(min=SMALLEST_UNIFORM))
    return normal
