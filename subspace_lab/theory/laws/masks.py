"""Laws of masks d in {0, 1}^r without an order of directions: coin flips, fixed sizes, blocks."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from subspace_lab.errors import UserError
from subspace_lab.theory import mask_moments
from subspace_lab.theory.laws.base import MaskLaw
from subspace_lab.theory.mask_moments import MaskMoments
from subspace_lab.theory.mask_overlap import (
    exact_k_overlap_pmf,
    jaccard_moments,
    kept_pmf,
    mask_overlap_pmf,
)


@dataclass(frozen=True)
class BinaryLaw(MaskLaw):
    """A law of masks, whose moments after a rescale by the realized share follow from their size.

    Given |d| = k the factor is r / k, so

        E[g] = sum_k P(k) (r / k) E[d | k],     E[g g^T] = sum_k P(k) (r / k)^2 E[d d^T | k],

    over k > 0: an empty mask gives no gates.
    """

    def gate_moments(self, rank: int) -> MaskMoments:
        """Mean (r,) and covariance (r, r) of the gates, after the rescale."""
        if self.rescale != "realized":
            return super().gate_moments(rank)
        sizes = np.arange(1, rank + 1)
        weights, factors = self.kept_pmf(rank)[1:], rank / sizes
        means, products = self._given_kept(sizes, rank)
        mean = (weights * factors) @ means
        second = np.einsum("k,kij->ij", weights * factors**2, products)
        return MaskMoments(mean, second - np.outer(mean, mean))

    @abstractmethod
    def kept_pmf(self, rank: int) -> NDArray[np.float64]:
        """Distribution of the number of kept directions, as P(0), ..., P(r)."""

    def _given_kept(
        self, sizes: NDArray[np.int64], rank: int
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Give E[d | k] (sizes, r) and E[d d^T | k] (sizes, r, r): k / r, k (k-1) / (r (r-1))."""
        share = sizes / rank
        products = np.multiply.outer(
            share * (sizes - 1) / max(rank - 1, 1), np.ones((rank, rank), dtype=np.float64)
        )
        products[:, np.arange(rank), np.arange(rank)] = share[:, None]
        return np.multiply.outer(share, np.ones(rank)), products


@dataclass(frozen=True)
class Bernoulli(BinaryLaw):
    """Each direction is kept with probability q, independently.

    >>> Bernoulli(0.5).kept_pmf(2).tolist()
    [0.25, 0.5, 0.25]
    """

    sampling: str = field(default="bernoulli", init=False)
    independent_gates: ClassVar[bool] = True

    def draw(self, uniform: Any) -> Any:
        """Keep the directions whose number is below q."""
        return uniform < self.keep_prob

    def kept_pmf(self, rank: int) -> NDArray[np.float64]:
        """Bin(r, q)."""
        return kept_pmf(rank, keep_prob=self.keep_prob)

    def overlap_pmf(self, rank: int) -> NDArray[np.float64]:
        """Bin(r, q^2)."""
        return mask_overlap_pmf(rank, keep_prob=self.keep_prob)

    def jaccard(self, rank: int) -> float:
        """Q / (2 - q), and 1 where both masks are empty."""
        return jaccard_moments(rank, keep_prob=self.keep_prob).mean

    def moments(self, rank: int) -> MaskMoments:
        """E[d] = q, Cov(d) = q (1 - q) I."""
        return mask_moments.bernoulli(rank, keep_prob=self.keep_prob)


@dataclass(frozen=True)
class ExactK(BinaryLaw):
    """Exactly k = q r directions are kept, all subsets of that size with equal probability.

    >>> ExactK(0.5).kept_pmf(2).tolist()
    [0.0, 1.0, 0.0]
    """

    sampling: str = field(default="exact-k", init=False)

    def check_rank(self, rank: int) -> None:
        """Raise UserError if q r is not a whole number."""
        kept_directions(self, rank)

    def draw(self, uniform: Any) -> Any:
        """Keep the k directions with the smallest numbers."""
        return uniform.argsort(-1).argsort(-1) < kept_directions(self, uniform.shape[-1])

    def kept_pmf(self, rank: int) -> NDArray[np.float64]:
        """All probability on k."""
        return np.asarray(np.eye(rank + 1)[kept_directions(self, rank)])

    def overlap_pmf(self, rank: int) -> NDArray[np.float64]:
        """Hypergeometric."""
        return exact_k_overlap_pmf(rank, kept=kept_directions(self, rank))

    def jaccard(self, rank: int) -> float:
        """The mean of i / (2 k - i) over overlaps i."""
        overlap = np.arange(rank + 1)
        union = np.maximum(2 * kept_directions(self, rank) - overlap, 1)
        return float(self.overlap_pmf(rank) @ (overlap / union))

    def moments(self, rank: int) -> MaskMoments:
        """E[d] = q, Cov(d)_ij = -q (1 - q) / (r - 1)."""
        return mask_moments.exact_k(rank, kept=kept_directions(self, rank))


@dataclass(frozen=True)
class Antithetic(Bernoulli):
    """A Bernoulli(1/2) mask, then its complement: two draws in a row average to 1/2 exactly.

    Of samples and tokens the complement is of the same place in the micro-batch of the same number,
    where the two batches have the same shape.
    """

    sampling: str = field(default="antithetic", init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.keep_prob != 0.5 or not self.constant:
            raise UserError(
                "a mask and its complement keep half the directions on average: `sampling` "
                "antithetic needs `keep_prob` 0.5 in all modules and steps"
            )

    @property
    def dependence(self) -> str:
        """Why draws are not independent."""
        return "every second mask is the complement of the one before"

    def _drawn(self, uniform: Any, step: int) -> Any:
        kept = self.draw(uniform)
        return ~kept if self._slot(step) % 2 else kept

    def _source(self, step: int) -> int:
        return self._slot(step) // 2 + 1


@dataclass(frozen=True)
class TwoInTurn(Bernoulli):
    """Two Bernoulli(q) masks, drawn once, that take turns. Moments are those over seeds."""

    sampling: str = field(default="two", init=False)

    @property
    def dependence(self) -> str:
        """Why draws are not independent."""
        return "two masks take turns"

    def _source(self, step: int) -> int:
        return self._slot(step) % 2 + 1


@dataclass(frozen=True)
class Blocks(BinaryLaw):
    """Blocks of neighboring directions are kept or dropped as one, each with probability q.

    Attributes:
        block_size: directions of one block.

    >>> Blocks(0.5, block_size=2).kept_pmf(4).tolist()
    [0.25, 0.0, 0.5, 0.0, 0.25]
    """

    sampling: str = field(default="blocks", init=False)
    block_size: int = field(default=2, kw_only=True)
    exchangeable: ClassVar[bool] = False

    def check_rank(self, rank: int) -> None:
        """Raise UserError if the rank is no multiple of the block size."""
        if self.block_size < 1 or rank % self.block_size:
            raise UserError(f"`block_size` {self.block_size} does not divide the rank {rank}")

    def draw(self, uniform: Any) -> Any:
        """Keep the blocks whose first number is below q."""
        return uniform[..., self._first_of_block(uniform.shape[-1])] < self.keep_prob

    def kept_pmf(self, rank: int) -> NDArray[np.float64]:
        """Bin(r / size, q) blocks."""
        return self._spread(self._one_a_block.kept_pmf(rank // self.block_size))

    def overlap_pmf(self, rank: int) -> NDArray[np.float64]:
        """Bin(r / size, q^2) blocks."""
        return self._spread(self._one_a_block.overlap_pmf(rank // self.block_size))

    def jaccard(self, rank: int) -> float:
        """That of one direction a block."""
        return self._one_a_block.jaccard(rank // self.block_size)

    def moments(self, rank: int) -> MaskMoments:
        """E[d] = q, Cov(d)_ij = q (1 - q) within a block, else 0."""
        return mask_moments.blocks(rank, block_size=self.block_size, keep_prob=self.keep_prob)

    @property
    def _one_a_block(self) -> Bernoulli:
        return Bernoulli(self.keep_prob)

    def _first_of_block(self, rank: int) -> list[int]:
        self.check_rank(rank)
        return [i - i % self.block_size for i in range(rank)]

    def _spread(self, of_blocks: NDArray[np.float64]) -> NDArray[np.float64]:
        pmf = np.zeros((len(of_blocks) - 1) * self.block_size + 1)
        pmf[:: self.block_size] = of_blocks
        return pmf

    def _given_kept(
        self, sizes: NDArray[np.int64], rank: int
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        block = np.arange(rank) // self.block_size
        blocks = sizes // self.block_size
        means, products = super()._given_kept(blocks, rank // self.block_size)
        return means[:, block], products[:, block[:, None], block]


def kept_directions(law: MaskLaw, rank: int) -> int:
    """Give k = q r of a law that keeps a fixed number of directions.

    Raises:
        UserError: if q r is not a whole number of at least 1.
    """
    kept = round(law.keep_prob * rank)
    if abs(kept - law.keep_prob * rank) > 1e-9 or kept == 0:
        raise UserError(
            f"`sampling` {law.sampling} needs keep_prob x rank to be a whole number of at least 1, "
            f"not {law.keep_prob:g} x {rank}"
        )
    return kept
