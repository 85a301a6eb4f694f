"""What masked steps can reach, and how the frame of an adapter moves.

The full-rank update is dW = gamma B A with rank r, whatever the masks: they choose which of LoRA's
own tangent directions a step uses. New directions enter only by frame drift, the motion of row(A)
and col(B); a mask jump (angles between row(A_M1) and row(A_M2) of one frame) is another thing.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from subspace_lab.theory._checks import check_keep_prob


@dataclass(frozen=True)
class UpdateStep:
    """Change of dW = gamma B A in one SGD step: first_order + second_order, exactly."""

    first_order: Float[Tensor, "m n"]  # the masked LoRA kernel applied to -eta G
    second_order: Float[Tensor, "m n"]  # eta^2, from dB dA


def tangent_dimension(m: int, n: int, *, masks: Bool[Tensor, "*batch r"]) -> int:
    """Dimension of the sum of the tangent spaces that the given masks reach.

    Under one mask of k directions the reachable first-order changes {dB D A + B D dA} have
    dimension k (m + n - k). Several masks reach the sum of these spaces, which is that of the
    union of their directions, c (m + n - c) with c directions covered: once every direction has
    been kept, LoRA's own r (m + n - r) and no more. For B and A of full rank r <= min(m, n); at
    B = 0 only {dB A} is left, of dimension c m.

    >>> tangent_dimension(6, 5, masks=torch.tensor([[True, True, False], [False, True, True]]))
    24
    """
    covered = int(masks.reshape(-1, masks.shape[-1]).any(0).sum())
    return covered * (m + n - covered)


def masked_step(
    weight_gradient: Float[Tensor, "m n"],
    B: Float[Tensor, "m r"],
    A: Float[Tensor, "r n"],
    mask: Bool[Tensor, " r"],
    *,
    learning_rate: float,
    rescale: float,
    scaling: float = 1.0,
) -> UpdateStep:
    """Change of the full-rank update by one SGD step under a step mask D = diag(mask).

        dW_{t+1} - dW_t = -eta gamma^2 s [G A^T D A + B D B^T G] + eta^2 gamma^3 s^2 G A^T D B^T G,

    exactly. G is the loss's gradient with respect to the masked update gamma s B D A. Of the first
    order, one part has its rows in row(A) and the other its columns in col(B); its rank is at most
    2 |M|, that of the whole step as well.

    Args:
        weight_gradient: G.
        B: output factor before the step.
        A: input factor before the step.
        mask: True = kept.
        learning_rate: eta, without momentum or weight decay.
        rescale: s.
        scaling: gamma.
    """
    G, B, A = weight_gradient.double(), B.double(), A.double()
    kept_A, kept_B = A[mask], B[:, mask]
    size = learning_rate * scaling * rescale  # both factors move by this, dB = -size G A^T D
    change_B, change_A = -size * G @ kept_A.T, -size * kept_B.T @ G
    return UpdateStep(
        first_order=scaling * (change_B @ kept_A + kept_B @ change_A),
        second_order=scaling * change_B @ change_A,
    )


def expected_kernel(
    weight_gradient: Float[Tensor, "m n"],
    B: Float[Tensor, "m r"],
    A: Float[Tensor, "r n"],
    *,
    keep_prob: float,
    rescale: float,
    scaling: float = 1.0,
) -> Float[Tensor, "m n"]:
    """Mean over masks of the masked kernel, gamma^2 s q [G A^T A + B B^T G].

    LoRA's kernel times s q, for a gradient G that does not depend on the mask; since it does, this
    is exact only where the loss is linear in the update, and leading order in ||dW|| elsewhere. At
    rescale 1/q it is LoRA's.
    """
    check_keep_prob(keep_prob)
    G, B, A = weight_gradient.double(), B.double(), A.double()
    return scaling**2 * rescale * keep_prob * (G @ A.T @ A + B @ B.T @ G)


def frame_drift(A: Float[Tensor, "r n"], step: Float[Tensor, "r n"]) -> Float[Tensor, " r"]:
    """Sines of the principal angles between row(A) and row(A + E), descending.

        sin theta = singular values of (I - P_A) E^T (A' A'^T)^{-1/2},   A' = A + E,

    P_A the projector on row(A): accurate for the smallest steps, as nothing large is subtracted.
    For the column frame of B pass B^T. E with |M| non-zero rows (SGD under a step mask) gives at
    most |M| non-zero angles; AdamW moves the masked rows too.

    Raises:
        ValueError: A or A + E has no full row rank in float64, so its row space is ill-defined.
    """
    A, E = A.double(), step.double()
    Q, R = torch.linalg.qr(A.T)
    _, R_next = torch.linalg.qr((A + E).T)
    for name, triangle in [("A", R), ("A + step", R_next)]:
        sigma = torch.linalg.svdvals(triangle)
        if not sigma[-1] > len(A) * torch.finfo(A.dtype).eps * sigma[0]:
            raise ValueError(f"the rows of {name} are linearly dependent: they do not form a frame")
    outside = E.T - Q @ (Q.T @ E.T)
    inclined = torch.linalg.solve_triangular(R_next, outside, upper=True, left=False)
    sines: Tensor = torch.linalg.svdvals(inclined)
    return sines


def step_rank(m: int, n: int, *, kept: int, zero_B: bool = False) -> int:
    """Largest rank of one SGD step's change of dW: min(2 |M|, m, n), at B = 0 min(|M|, m, n).

    Generic gradients attain it (a gradient of smaller rank, as from few tokens, does not).

    >>> step_rank(4096, 4096, kept=8), step_rank(4096, 4096, kept=8, zero_B=True)
    (16, 8)
    """
    return min(kept if zero_B else 2 * kept, m, n)


def reachable_rank(m: int, n: int, *, rank: int, refreshes: int = 1) -> int:
    """Largest rank of all that an adapter can have added to a weight: min(refreshes r, m, n).

    One adapter (refreshes = 1) has rank r at any time and under any masks. Methods that re-draw the
    frame and keep what was learned (GaLore, Flora, merged restarts as in ReLoRA) add r a refresh.

    >>> reachable_rank(64, 48, rank=8), reachable_rank(64, 48, rank=8, refreshes=10)
    (8, 48)
    """
    return min(refreshes * rank, m, n)
