"""The law of the rank masks: a pure function of the seed, the step, the call and the module."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from subspace_lab.errors import UserError

if TYPE_CHECKING:
    from numpy.typing import NDArray

Granularity = Literal["step", "sample", "token"]
Sampling = Literal["bernoulli", "exact-k"]


@dataclass(frozen=True)
class MaskLaw:
    """How rank masks are drawn.

    Attributes:
        keep_prob: probability q in (0, 1] that a rank direction is kept.
        granularity: what shares one mask: an optimizer `step`, a `sample`, or a `token`.
        rescale: multiply what is kept by 1 / q, so that the mean over masks is the full update.
        sampling: `bernoulli` (each direction on its own) or `exact-k` (q r of them, uniformly).
        seed: seed of the masks.

    Raises:
        UserError: if keep_prob lies outside (0, 1], or a name is unknown.
    """

    keep_prob: float
    granularity: Granularity = "step"
    rescale: bool = True
    sampling: Sampling = "bernoulli"
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.keep_prob <= 1:
            raise UserError(f"keep_prob must lie in (0, 1], not {self.keep_prob}")
        if self.granularity not in get_args(Granularity):
            raise UserError(f"granularity must be step, sample or token, not {self.granularity!r}")
        if self.sampling not in get_args(Sampling):
            raise UserError(f"sampling must be bernoulli or exact-k, not {self.sampling!r}")

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
        uniform = np.random.Generator(stream).random(rank)
        if self.sampling == "exact-k":
            return uniform.argsort().argsort() < self.kept_exactly(rank)
        return uniform < self.keep_prob

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

    def kept_exactly(self, rank: int) -> int:
        """Give k = q r of the exact-k law.

        Raises:
            UserError: if q r is not a whole number.
        """
        kept = round(self.keep_prob * rank)
        if abs(kept - self.keep_prob * rank) > 1e-9 or kept == 0:
            raise UserError(
                f"exact-k masks need keep_prob x rank to be a whole number of at least 1, "
                f"not {self.keep_prob} x {rank}"
            )
        return kept
