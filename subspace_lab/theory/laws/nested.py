"""Nested directions, the first ones more important: DyLoRA's prefixes, MatryoshkaLoRA's diagonal.

DyLoRA (Valipour et al. 2023) draws a rank b and trains the first b directions with the scaling
alpha / b: prefix masks with the rescale `realized`, as alpha / b = (alpha / r) (r / b). Two
reimplementations that carry its name train something else, which is no law of gates:

    LyCORIS     the first b directions at alpha / b, of which only the last (block) gets gradients;
                with blocks it divides by their number, not by their directions
    kohya       all r directions at alpha / r sqrt(r / b), of which only the b-th (unit) gets them

The first is like DyLoRA's own option of freezing the directions before b.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from subspace_lab.errors import UserError
from subspace_lab.theory.laws.base import MaskLaw, Rescale
from subspace_lab.theory.laws.masks import BinaryLaw
from subspace_lab.theory.mask_moments import MaskMoments


@dataclass(frozen=True)
class Prefix(BinaryLaw):
    """The first b directions are kept, b uniform over 1, ..., r or as set.

    Attributes:
        prefix_geometric: p in (0, 1) of a geometric law of b cut off at r, P(b) ~ (1 - p)^(b - 1).
        nested_ranks: the ranks among which b is drawn, all with equal probability.

    >>> Prefix(0.5, rescale="realized").kept_pmf(4).tolist()
    [0.0, 0.25, 0.25, 0.25, 0.25]
    """

    sampling: str = field(default="prefix", init=False)
    prefix_geometric: float | None = field(default=None, kw_only=True)
    nested_ranks: Sequence[int] | None = field(default=None, kw_only=True)
    exchangeable: ClassVar[bool] = False
    rescales: ClassVar[tuple[Rescale, ...]] = ("none", "realized")
    uses_keep_prob: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        _freeze_ranks(self)
        if self.prefix_geometric is not None and not 0 < self.prefix_geometric < 1:
            raise UserError(f"`prefix_geometric` must lie in (0, 1), not {self.prefix_geometric}")
        if self.prefix_geometric is not None and self.nested_ranks is not None:
            raise UserError("set `prefix_geometric` or `nested_ranks`, not both")

    def check_rank(self, rank: int) -> None:
        """Raise UserError if a nested rank is above r."""
        _check_ranks(self.nested_ranks, rank)

    def draw(self, uniform: Any) -> Any:
        """Keep direction i where the first number is at least P(b < i)."""
        below = self.kept_pmf(uniform.shape[-1]).cumsum()[:-1]
        if isinstance(uniform, torch.Tensor):
            return uniform[..., :1] >= uniform.new_tensor(below)
        return uniform[..., :1] >= below

    def kept_pmf(self, rank: int) -> NDArray[np.float64]:
        """Distribution of b, as P(0) = 0, P(1), ..., P(r)."""
        self.check_rank(rank)
        pmf = np.zeros(rank + 1)
        if self.nested_ranks is not None:
            pmf[list(self.nested_ranks)] = 1
        else:
            pmf[1:] = (1 - (self.prefix_geometric or 0)) ** np.arange(rank)
        return np.asarray(pmf / pmf.sum())

    def overlap_pmf(self, rank: int) -> NDArray[np.float64]:
        """The smaller of two b: P(min >= i) = P(b >= i)^2."""
        at_least = self.kept_pmf(rank)[::-1].cumsum()[::-1] ** 2
        return np.asarray(at_least - np.append(at_least[1:], 0))

    def jaccard(self, rank: int) -> float:
        """The mean of min(b, b') / max(b, b')."""
        pmf, sizes = self.kept_pmf(rank)[1:], np.arange(1, rank + 1)
        ratio = np.minimum.outer(sizes, sizes) / np.maximum.outer(sizes, sizes)
        return float(pmf @ ratio @ pmf)

    def moments(self, rank: int) -> MaskMoments:
        """E[d_i] = p_i = P(b >= i), Cov(d)_ij = min(p_i, p_j) - p_i p_j."""
        mean = self.kept_pmf(rank)[1:][::-1].cumsum()[::-1]
        return MaskMoments(mean, np.minimum.outer(mean, mean) - np.outer(mean, mean))

    def _given_kept(
        self, sizes: NDArray[np.int64], rank: int
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        masks = (np.arange(rank) < sizes[:, None]).astype(np.float64)
        return masks, masks[:, :, None] * masks[:, None, :]


@dataclass(frozen=True)
class Fixed(MaskLaw):
    """The mean of prefix gates over nested ranks, one diagonal for all steps: MatryoshkaLoRA's P.

    With nested ranks r_1 < ... < r_n = r,

        g_i = (1 / n) sum over r_j >= i of f_j,      f_j = r / r_j (`realized`) or 1 (`none`),

    so that all nested ranks are trained at once (Modoranu et al. 2026, Algorithm 1, whose code
    takes the sum over j and not the mean: multiply alpha by n to get it).

    Attributes:
        nested_ranks: the nested ranks; None: 1, 2, 4, ... and r.

    >>> Fixed(1.0, rescale="none").moments(4).mean.tolist()
    [1.0, 0.6666666666666666, 0.3333333333333333, 0.3333333333333333]
    """

    sampling: str = field(default="fixed", init=False)
    nested_ranks: Sequence[int] | None = field(default=None, kw_only=True)
    binary: ClassVar[bool] = False
    exchangeable: ClassVar[bool] = False
    rescales: ClassVar[tuple[Rescale, ...]] = ("none", "realized")
    uses_keep_prob: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        _freeze_ranks(self)

    @property
    def dependence(self) -> str:
        """Why draws are not independent."""
        return "the gates are the same in all steps"

    def check_rank(self, rank: int) -> None:
        """Raise UserError if a nested rank is above r."""
        _check_ranks(self.nested_ranks, rank)

    def draw(self, uniform: Any) -> Any:
        """Give the diagonal without a rescale, whatever the numbers are."""
        return _broadcast(self.moments(uniform.shape[-1]).mean, uniform)

    def rescaled(self, drawn: Any) -> Any:
        """Give the diagonal with its rescale."""
        return _broadcast(self.gate_moments(drawn.shape[-1]).mean, drawn)

    def moments(self, rank: int) -> MaskMoments:
        """The diagonal without a rescale; no covariance."""
        return self._mean_of_prefixes(rank, "none")

    def gate_moments(self, rank: int) -> MaskMoments:
        """The diagonal with its rescale; no covariance."""
        return self._mean_of_prefixes(rank, self.rescale)

    def _mean_of_prefixes(self, rank: int, rescale: Rescale | bool) -> MaskMoments:
        powers = {2**i for i in range(rank.bit_length()) if 2**i <= rank} | {rank}
        ranks = self.nested_ranks or sorted(powers)
        mean = Prefix(1.0, rescale=rescale, nested_ranks=ranks).gate_moments(rank).mean
        return MaskMoments(mean, np.zeros((rank, rank)))


def _broadcast(diagonal: NDArray[np.float64], like: Any) -> Any:
    if isinstance(like, torch.Tensor):
        return torch.from_numpy(diagonal).to(like).expand(like.shape)
    return np.broadcast_to(diagonal, like.shape)


def _freeze_ranks(law: Prefix | Fixed) -> None:
    if law.nested_ranks is not None:
        object.__setattr__(law, "nested_ranks", tuple(sorted(set(law.nested_ranks))))
        _check_ranks(law.nested_ranks, max(law.nested_ranks, default=0))


def _check_ranks(ranks: Sequence[int] | None, rank: int) -> None:
    if ranks is not None and not (ranks and min(ranks) >= 1 and max(ranks) <= rank):
        raise UserError(
            f"`nested_ranks` must be ranks from 1 to the adapter's, {rank}: not {list(ranks)}"
        )
