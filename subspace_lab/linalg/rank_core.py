"""Rank cores: all that a step of a low-rank update says, in r dimensions.

For one side of the update, X = A^T (n, r) for the row space or X = B (m, r) for the column space,
let X_t = Q R be its QR factorization at step t, and Delta = X_t - X_s the displacement since an
earlier step s (the previous one, or the start). One QR factorization of the stacked [X_t, Delta]
gives Delta = Q along + Q_perp across, where Q_perp is orthonormal and orthogonal to Q. The frames
X_t and X_s in the common orthonormal basis [Q, Q_perp] are then

    X_t = [R; 0],        X_s = [R - along; -across],

both (2 r, r): every norm, singular value and principal angle at t, and between t and s, follows
exactly. Factorising Delta itself, not X_s, keeps tiny steps free of cancellation, because
Householder QR is backward stable column by column (Higham 2002, Theorem 19.4).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from .spectra import frobenius_norm, singular_values
from .triangular import triangular_factor

Since = Literal["previous", "start"]
"""The step that a displacement is measured from: the previous optimizer step, or step 0."""

CANCELLED = 1e-13
"""Relative size below which a difference of float64 columns is rounding noise."""


@dataclass(frozen=True)
class Displacement:
    """The displacement Delta = Q along + Q_perp across of a frame since an earlier step.

    Attributes:
        along: Q^T Delta, the part inside the span of X_t, (..., r, r).
        across: Q_perp^T Delta, the part orthogonal to it, (..., r, r), upper triangular.
    """

    along: Float[Tensor, "*batch r r"]
    across: Float[Tensor, "*batch r r"]

    @property
    def norm(self) -> Float[Tensor, "*batch"]:
        """Frobenius norm of Delta."""
        norm: Tensor = torch.linalg.matrix_norm(self.coordinates)
        return norm

    @property
    def coordinates(self) -> Float[Tensor, "*batch rr r"]:
        """Delta in the basis [Q, Q_perp], (..., 2 r, r)."""
        return torch.cat([self.along, self.across], dim=-2)


@dataclass(frozen=True)
class Frame:
    """One side of an update at a step: X = A^T or X = B.

    Attributes:
        R: upper triangular, R^T R = X^T X.
        previous: displacement since the previous optimizer step (None where it was not recorded).
        start: displacement since step 0 (None where it was not recorded).
    """

    R: Float[Tensor, "*batch r r"]
    previous: Displacement | None = None
    start: Displacement | None = None

    @property
    def norms(self) -> Float[Tensor, "*batch r"]:
        """Norms of the rank directions: ||a_i|| or ||b_i||."""
        norms: Tensor = torch.linalg.vector_norm(self.R, dim=-2)
        return norms

    @property
    def gram(self) -> Float[Tensor, "*batch r r"]:
        """The Gram matrix X^T X: A A^T or B^T B."""
        return self.R.mT @ self.R

    def displacement(self, since: Since) -> Displacement:
        """The displacement since an earlier step.

        Raises:
            ValueError: if it was not recorded.
        """
        displacement = self.previous if since == "previous" else self.start
        if displacement is None:
            raise ValueError(f"the core has no displacement since {since!r}")
        return displacement

    def now(self) -> Float[Tensor, "*batch rr r"]:
        """X at this step in the basis [Q, Q_perp], (..., 2 r, r)."""
        return torch.cat([self.R, torch.zeros_like(self.R)], dim=-2)

    def before(self, since: Since) -> Float[Tensor, "*batch rr r"]:
        """X at the earlier step in the same basis, (..., 2 r, r).

        A column that the displacement cancels to rounding noise was zero (B's at the start), and
        is zero.

        Raises:
            ValueError: if the displacement was not recorded.
        """
        now = self.now()
        before = now - self.displacement(since).coordinates
        norm = torch.linalg.vector_norm(before, dim=-2, keepdim=True)
        noise = CANCELLED * torch.linalg.vector_norm(now, dim=-2, keepdim=True)
        return torch.where(norm > noise, before, 0.0)


@dataclass(frozen=True)
class RankCore:
    """The rank core of one module at one step, or of a batch of both.

    The update is dW = scaling * B A; `row` holds X = A^T, `column` holds X = B.
    """

    row: Frame
    column: Frame
    scaling: Float[Tensor, "*batch"]

    def __repr__(self) -> str:
        """How many cores of which rank, and of a single one the spectrum of dW."""
        *batch, rank, _ = self.row.R.shape
        since = [name for name in get_args(Since) if getattr(self.row, name) is not None]
        known = f", displacements since {' and '.join(since)}" if since else ""
        if batch:
            return f"RankCore: {' x '.join(map(str, batch))} cores of rank {rank}{known}"
        if not (self.row.R.isfinite().all() and self.column.R.isfinite().all()):
            return f"RankCore of rank {rank}: not finite{known}"
        sigma = " ".join(f"{value:.3g}" for value in self.singular_values().tolist())
        return f"RankCore of rank {rank}: ||dW|| {self.norm():.3g}, singular values {sigma}{known}"

    def singular_values(
        self, mask: Bool[Tensor, "*masks r"] | None = None
    ) -> Float[Tensor, "*out r"]:
        """Singular values of scaling * B diag(mask) A, descending."""
        sigma = singular_values(self.column.R, self.row.R.mT, mask=mask)
        return sigma * self.scaling.abs()[..., None]

    def norm(self) -> Float[Tensor, "*batch"]:
        """Frobenius norm of dW."""
        return self.scaling.abs() * frobenius_norm(self.column.R, self.row.R.mT)

    def change(self, since: Since) -> Float[Tensor, "*batch rr rr"]:
        """dW_t - dW_s in orthonormal coordinates, (..., 2 r, 2 r): Delta_B A_t + B_s Delta_A.

        Raises:
            ValueError: if the displacements since that step were not recorded.
        """
        row, column = self.row.displacement(since), self.column.displacement(since)
        before = self.column.before(since)
        change: Tensor = column.coordinates @ self.row.now().mT + before @ row.coordinates.mT
        return self.scaling[..., None, None] * change

    def change_norm(self, since: Since) -> Float[Tensor, "*batch"]:
        """Frobenius norm of dW_t - dW_s."""
        norm: Tensor = torch.linalg.matrix_norm(self.change(since))
        return norm

    def __getitem__(self, index: object) -> RankCore:
        """Index the batch dimensions."""
        return _combined([self], lambda parts: parts[0][index])  # type: ignore[index]

    @classmethod
    def cat(cls, cores: Sequence[RankCore], *, dim: int = 0) -> RankCore:
        """Concatenate batches of cores along a batch dimension, counted from 0.

        A displacement that one of them lacks is None.
        """
        return _combined(cores, lambda parts: torch.cat(parts, dim=dim))

    @classmethod
    def stack(cls, cores: Sequence[RankCore], *, dim: int = 0) -> RankCore:
        """Stack batches of cores along a new batch dimension, as `cat` does along an old one."""
        return _combined(cores, lambda parts: torch.stack(parts, dim=dim))


def frame_core(
    X: Float[Tensor, "*batch n r"],
    previous: Float[Tensor, "*batch n r"],
    start: Float[Tensor, "*batch n r"],
) -> Frame:
    """Reduce one side of the update to its frame core, in one QR factorization.

    The columns of [X, X - previous, X - start] are factorized together; the block of the last
    displacement that is orthogonal to X has 2 r rows, and a second, small factorization brings it
    to r. Runs on the tensors' device, in float64.
    """
    n, rank = X.shape[-2:]
    now, step, whole = (slice(i * rank, (i + 1) * rank) for i in range(3))
    # Laid out column by column, as LAPACK wants it, and filled without temporaries: on a processor
    # the copies would otherwise cost more than the factorization.
    columns = torch.empty(*X.shape[:-2], 3 * rank, n, dtype=torch.float64, device=X.device)
    columns[..., now, :] = X.mT
    torch.sub(columns[..., now, :], previous.mT, out=columns[..., step, :])
    torch.sub(columns[..., now, :], start.mT, out=columns[..., whole, :])
    R = triangular_factor(columns.mT)
    return Frame(
        R[..., now, now],
        Displacement(R[..., now, step], R[..., step, step]),
        Displacement(R[..., now, whole], triangular_factor(R[..., rank:, whole])),
    )


def _combined(cores: Sequence[RankCore], combine: Callable[[list[Tensor]], Tensor]) -> RankCore:
    """Make one core of several, each of its tensors from theirs."""

    def displacement(parts: list[Displacement | None]) -> Displacement | None:
        recorded = [part for part in parts if part is not None]
        if len(recorded) < len(parts):
            return None
        return Displacement(
            combine([part.along for part in recorded]), combine([part.across for part in recorded])
        )

    def frame(frames: list[Frame]) -> Frame:
        return Frame(
            combine([frame.R for frame in frames]),
            displacement([frame.previous for frame in frames]),
            displacement([frame.start for frame in frames]),
        )

    return RankCore(
        frame([core.row for core in cores]),
        frame([core.column for core in cores]),
        combine([core.scaling for core in cores]),
    )
