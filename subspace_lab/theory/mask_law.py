"""The law of the rank masks: how they are drawn, and what follows from that.

A law is one class: how it turns uniform numbers into masks, the distribution of the number of kept
directions, of the overlap of two independent masks, their mean Jaccard index, and the mean and
covariance of the gates. A new law is a subclass in `LAWS`, and a test of these by enumeration.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from subspace_lab.errors import UserError
from subspace_lab.theory import mask_moments
from subspace_lab.theory.mask_moments import MaskMoments
from subspace_lab.theory.mask_overlap import (
    exact_k_overlap_pmf,
    jaccard_moments,
    kept_pmf,
    mask_overlap_pmf,
)

Granularity = Literal["step", "sample", "token"]


@dataclass(frozen=True)
class MaskLaw(ABC):
    """How rank masks are drawn.

    Attributes:
        keep_prob: probability q in (0, 1] that a rank direction is kept.
        granularity: what shares one mask: an optimizer `step`, a `sample`, or a `token`.
        rescale: multiply what is kept by 1 / q, so that the mean over masks is the full update.
        seed: seed of the masks.
        sampling: the law's name in settings and records.
        independent_gates: whether the directions of a mask are drawn independently.

    Raises:
        UserError: if keep_prob lies outside (0, 1], or the granularity is unknown.
    """

    keep_prob: float
    granularity: Granularity = "step"
    rescale: bool = True
    seed: int = 0
    sampling: str = field(init=False)
    independent_gates: ClassVar[bool]

    def __post_init__(self) -> None:
        if not 0 < self.keep_prob <= 1:
            raise UserError(f"keep_prob must lie in (0, 1], not {self.keep_prob}")
        if self.granularity not in get_args(Granularity):
            raise UserError(f"granularity must be step, sample or token, not {self.granularity!r}")

    @property
    def factor(self) -> float:
        """What kept directions are multiplied by: s = 1 / keep_prob if rescaled, else 1."""
        return 1 / self.keep_prob if self.rescale else 1.0

    def step_mask(self, step: int, module: str, rank: int) -> NDArray[np.bool_]:
        """Draw the step mask (r,), True = kept: a pure function of (seed, step, module).

        Philox counters (Salmon et al. 2011) make it random access: no state is carried from step
        to step, so micro-batches, data-parallel ranks and resumed runs agree by construction.
        """
        name = int.from_bytes(hashlib.sha256(module.encode()).digest()[:8], "little")
        stream = np.random.Philox(
            key=np.array([self.seed, name], dtype=np.uint64),
            counter=np.array([0, 0, 0, step], dtype=np.uint64),
        )
        mask: NDArray[np.bool_] = self.keep(np.random.Generator(stream).random(rank))
        return mask

    def draw_seed(self, step: int, module: str, *, call: int, process: int) -> int:
        """Give the seed, 63 bits, of one draw of sample or token masks.

        Args:
            step: optimizer step, from 1.
            module: name of the module.
            call: number of the module's forward pass within the step (its micro-batch), from 1.
            process: rank of the data-parallel process, from 0.
        """
        key = repr((self.seed, step, module, call, process)).encode()
        return int.from_bytes(hashlib.sha256(key).digest()[:8], "little") >> 1

    def check_rank(self, rank: int) -> None:  # noqa: B027
        """Raise UserError if the law cannot mask r directions; most can mask any number."""

    @abstractmethod
    def keep(self, uniform: Any) -> Any:
        """Turn independent uniform numbers (..., r), an array or a tensor, into masks."""

    @abstractmethod
    def kept_pmf(self, rank: int) -> NDArray[np.float64]:
        """Distribution of the number of kept directions, as P(0), ..., P(r)."""

    @abstractmethod
    def overlap_pmf(self, rank: int) -> NDArray[np.float64]:
        """Distribution of the number of directions that two independent masks both keep."""

    @abstractmethod
    def jaccard(self, rank: int) -> float:
        """Mean Jaccard index of two independent masks; that of two empty masks is 1."""

    @abstractmethod
    def moments(self, rank: int) -> MaskMoments:
        """Mean (r,) and covariance (r, r) of the gates."""


@dataclass(frozen=True)
class Bernoulli(MaskLaw):
    """Each direction is kept with probability q, independently.

    >>> Bernoulli(0.5).kept_pmf(2).tolist()
    [0.25, 0.5, 0.25]
    """

    sampling: str = field(default="bernoulli", init=False)
    independent_gates: ClassVar[bool] = True

    def keep(self, uniform: Any) -> Any:
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
class ExactK(MaskLaw):
    """Exactly k = q r directions are kept, all subsets of that size with equal probability.

    >>> ExactK(0.5).kept_pmf(2).tolist()
    [0.0, 1.0, 0.0]
    """

    sampling: str = field(default="exact-k", init=False)
    independent_gates: ClassVar[bool] = False

    def check_rank(self, rank: int) -> None:
        """Raise UserError if q r is not a whole number."""
        self.kept(rank)

    def kept(self, rank: int) -> int:
        """Give k = q r.

        Raises:
            UserError: if q r is not a whole number of at least 1.
        """
        kept = round(self.keep_prob * rank)
        if abs(kept - self.keep_prob * rank) > 1e-9 or kept == 0:
            raise UserError(
                f"exact-k masks need keep_prob x rank to be a whole number of at least 1, "
                f"not {self.keep_prob} x {rank}"
            )
        return kept

    def keep(self, uniform: Any) -> Any:
        """Keep the k directions with the smallest numbers."""
        return uniform.argsort(-1).argsort(-1) < self.kept(uniform.shape[-1])

    def kept_pmf(self, rank: int) -> NDArray[np.float64]:
        """All probability on k."""
        return np.asarray(np.eye(rank + 1)[self.kept(rank)])

    def overlap_pmf(self, rank: int) -> NDArray[np.float64]:
        """Hypergeometric."""
        return exact_k_overlap_pmf(rank, kept=self.kept(rank))

    def jaccard(self, rank: int) -> float:
        """The mean of i / (2 k - i) over overlaps i."""
        overlap = np.arange(rank + 1)
        union = np.maximum(2 * self.kept(rank) - overlap, 1)
        return float(self.overlap_pmf(rank) @ (overlap / union))

    def moments(self, rank: int) -> MaskMoments:
        """E[d] = q, Cov(d)_ij = -q (1 - q) / (r - 1)."""
        return mask_moments.exact_k(rank, kept=self.kept(rank))


LAWS: dict[str, type[MaskLaw]] = {"bernoulli": Bernoulli, "exact-k": ExactK}
"""The laws by their names in settings and records."""

DEFAULT_LAW = Bernoulli(0.5)
"""The law by which a run without masks is masked afterwards."""


def mask_law(keep_prob: float, *, sampling: str = "bernoulli", **settings: Any) -> MaskLaw:
    """Make the law that settings or a record name.

    Args:
        keep_prob: see `MaskLaw`, as for `settings`.
        sampling: name of the law in `LAWS`.
        settings: granularity, rescale, seed.

    Raises:
        UserError: if there is no such law, or a setting is out of range.
    """
    if sampling not in LAWS:
        raise UserError(f"sampling must be {' or '.join(LAWS)}, not {sampling!r}")
    return LAWS[sampling](keep_prob, **settings)
