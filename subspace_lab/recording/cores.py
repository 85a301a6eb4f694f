"""Rank cores: all that a step of a low-rank update says, in r dimensions.

For one side of the update, X = A^T (n, r) for the row space or X = B (m, r) for the column space,
let X_t = Q R be its QR factorisation at step t, and Delta = X_t - X_s the displacement since an
earlier step s (the previous one, or the start). One QR factorisation of the stacked [X_t, Delta]
gives Delta = Q along + Q_perp across, where Q_perp is orthonormal and orthogonal to Q. The frames
X_t and X_s in the common orthonormal basis [Q, Q_perp] are then

    X_t = [R; 0],        X_s = [R - along; -across],

both (2 r, r): every norm, singular value and principal angle at t, and between t and s, follows
exactly. Factorising Delta itself, not X_s, keeps tiny steps free of cancellation, because
Householder QR is backward stable column by column (Higham 2002, Theorem 19.4).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from subspace_lab import linalg

CANCELLED = 1e-13
"""Relative size below which a difference of float64 columns is rounding noise."""


@dataclass(frozen=True)
class Motion:
    """The displacement Delta = Q along + Q_perp across of a frame since an earlier step."""

    along: Float[Tensor, "*batch r r"]
    across: Float[Tensor, "*batch r r"]  # upper triangular

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
        step: displacement since the previous optimizer step (None where it was not recorded).
        start: displacement since step 0 (None where it was not recorded).
    """

    R: Float[Tensor, "*batch r r"]
    step: Motion | None = None
    start: Motion | None = None

    @property
    def previous(self) -> Motion | None:
        return self.step

    @property
    def norms(self) -> Float[Tensor, "*batch r"]:
        """Norms of the rank directions: ||a_i|| or ||b_i||."""
        norms: Tensor = torch.linalg.vector_norm(self.R, dim=-2)
        return norms

    @property
    def gram(self) -> Float[Tensor, "*batch r r"]:
        """The Gram matrix X^T X: A A^T or B^T B."""
        return self.R.mT @ self.R

    def now(self) -> Float[Tensor, "*batch rr r"]:
        """X at this step in the basis [Q, Q_perp], (..., 2 r, r)."""
        return torch.cat([self.R, torch.zeros_like(self.R)], dim=-2)

    def then(self, motion: Motion) -> Float[Tensor, "*batch rr r"]:
        """X before `motion` (one of `step`, `start`) in the same basis, (..., 2 r, r).

        A column that the motion cancels to rounding noise was zero (B's at the start), and is zero.
        """
        now = self.now()
        then = now - motion.coordinates
        norm = torch.linalg.vector_norm(then, dim=-2, keepdim=True)
        noise = CANCELLED * torch.linalg.vector_norm(now, dim=-2, keepdim=True)
        return torch.where(norm > noise, then, 0.0)


@dataclass(frozen=True)
class RankCore:
    """The rank core of one module at one step, or of a batch of both.

    The update is dW = scaling * B A; `row` holds X = A^T, `column` holds X = B.
    """

    row: Frame
    column: Frame
    scaling: Float[Tensor, "*batch"]

    def singular_values(
        self, mask: Bool[Tensor, "*masks r"] | None = None
    ) -> Float[Tensor, "*out r"]:
        """Singular values of scaling * B diag(mask) A, descending."""
        sigma = linalg.singular_values(self.column.R, self.row.R.mT, mask=mask)
        return sigma * self.scaling.abs()[..., None]

    def norm(self) -> Float[Tensor, "*batch"]:
        """Frobenius norm of dW."""
        return self.scaling.abs() * linalg.frobenius_norm(self.column.R, self.row.R.mT)

    def change(self, since: str) -> Float[Tensor, "*batch rr rr"]:
        """Give dW_t - dW_s in orthonormal coordinates, (..., 2 r, 2 r): Delta_B A_t + B_s Delta_A.

        Args:
            since: `step` (s = t - 1) or `start` (s = 0).

        Raises:
            ValueError: if that displacement was not recorded.
        """
        row, column = getattr(self.row, since), getattr(self.column, since)
        if row is None or column is None:
            raise ValueError(f"the core holds no displacement since the {since}")
        before = self.column.then(column)
        change: Tensor = column.coordinates @ self.row.now().mT + before @ row.coordinates.mT
        return self.scaling[..., None, None] * change

    def change_norm(self, since: str) -> Float[Tensor, "*batch"]:
        """Frobenius norm of dW_t - dW_s."""
        norm: Tensor = torch.linalg.matrix_norm(self.change(since))
        return norm

    def __getitem__(self, index: object) -> RankCore:
        """Index the batch dimensions."""
        return RankCore(
            _index_frame(self.row, index),
            _index_frame(self.column, index),
            self.scaling[index],  # type: ignore[index]
        )


def frame_core(
    X: Float[Tensor, "*batch n r"],
    previous: Float[Tensor, "*batch n r"],
    start: Float[Tensor, "*batch n r"],
) -> Frame:
    """Reduce one side of the update to its frame core, in one QR factorisation.

    The columns of [X, X - previous, X - start] are factorised together; the block of the last
    displacement that is orthogonal to X has 2 r rows, and a second, small factorisation brings it
    to r. Runs on the tensors' device, in float64.
    """
    n, rank = X.shape[-2:]
    now, step, since = (slice(i * rank, (i + 1) * rank) for i in range(3))
    # Laid out column by column, as LAPACK wants it, and filled without temporaries: on a processor
    # the copies would otherwise cost more than the factorisation.
    columns = torch.empty(*X.shape[:-2], 3 * rank, n, dtype=torch.float64, device=X.device)
    columns[..., now, :] = X.mT
    torch.sub(columns[..., now, :], previous.mT, out=columns[..., step, :])
    torch.sub(columns[..., now, :], start.mT, out=columns[..., since, :])
    R = linalg.triangular_factor(columns.mT)
    return Frame(
        R[..., now, now],
        Motion(R[..., now, step], R[..., step, step]),
        Motion(R[..., now, since], linalg.triangular_factor(R[..., rank:, since])),
    )


def frame_arrays(side: str, frame: Frame) -> Iterator[tuple[str, Tensor]]:
    """List a frame's matrices by name, such as `row.step.across`; triangles come packed."""
    yield f"{side}.R", pack_triangle(frame.R)
    for since in ("step", "start"):
        motion = getattr(frame, since)
        if motion is not None:
            yield f"{side}.{since}.along", motion.along
            yield f"{side}.{since}.across", pack_triangle(motion.across)


def pack_triangle(R: Float[Tensor, "*batch r r"]) -> Float[Tensor, "*batch packed"]:
    """Keep the r (r + 1) / 2 values of an upper triangle, row by row."""
    i, j = torch.triu_indices(R.shape[-1], R.shape[-1], device=R.device)
    return R[..., i, j]


def unpack_triangle(packed: Float[Tensor, "*batch packed"], rank: int) -> Tensor:
    """Undo `pack_triangle`: (..., r (r + 1) / 2) to (..., r, r)."""
    R = packed.new_zeros(*packed.shape[:-1], rank * rank)
    i, j = torch.triu_indices(rank, rank, device=packed.device)
    R.index_copy_(-1, rank * i + j, packed)  # several times faster than assigning to R[..., i, j]
    return R.view(*packed.shape[:-1], rank, rank)


def _index_frame(frame: Frame, index: object) -> Frame:
    def motion(motion: Motion | None) -> Motion | None:
        if motion is None:
            return None
        return Motion(motion.along[index], motion.across[index])  # type: ignore[index]

    return Frame(frame.R[index], motion(frame.step), motion(frame.start))  # type: ignore[index]
