"""Principal angles between column spaces, and between masked column spaces of one frame.

The principal angles 0 <= theta_1 <= ... <= theta_q <= pi/2 of range(X) and range(Y) with
orthonormal bases Q_X, Q_Y have the cosines svdvals(Q_X^T Q_Y), descending, and the sines
svdvals((I - Q_X Q_X^T) Q_Y), ascending (Bjorck and Golub 1973, Math. Comp. 27(123)). Cosines alone
lose small angles and sines alone those near pi/2; atan2(sine, cosine) keeps both, with the two
lists matched in ascending order of the angle.

Both lists come from one triangular factor. Order the columns as [shared, X only, Y only], where
"shared" are columns that both sides have, and let R be their QR factor. In the coordinates of Q,
span(shared) is the first block of axes and X's part orthogonal to it the second. The rows below
the first block of the last columns,

    [Z_1]   rows of "X only"
    [Z_2]   rows of "Y only",

are Y's residual, inside X and outside it. Orthonormalizing them, [C; S] = [Z_1; Z_2] T^{-1}, gives
the cosines svdvals(C) and the sines svdvals(S). Shared directions are deflated exactly, and what
is left are the angles of the residual spaces (the partial canonical correlations given the shared
columns). Every pair costs O(r^3), whatever the length of the columns.

Dependent directions are identified by the rule of `bases`: a frame without them has none in any of
its masked parts, so one test per frame decides between the QR above and orthonormal bases by SVD.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor
from torch.nn.functional import pad

from .bases import dependence_tolerance, orthonormal_basis, reject, unit_frame
from .triangular import compressed

CHUNK = 256  # pairs that are worked on at once: what they need stays in the cache
LARGEST_COSINE = 0.7  # up to which an arc cosine serves without the sine


@dataclass(frozen=True)
class MaskedAngles:
    """Principal angles of pairs of masked column spaces.

    Attributes:
        angles: ascending radians, padded with nan past min(rank_x, rank_y) (..., r).
        shared: directions in both masks of one frame (...); 0 for two frames.
        kept_x: directions that the first mask keeps (...).
        kept_y: directions that the second mask keeps (...).
        rank_x: dimension of the first space; below kept_x where columns are dependent (...).
        rank_y: dimension of the second space (...).
    """

    angles: Float[Tensor, "*batch r"]
    shared: Int[Tensor, "*batch"]
    kept_x: Int[Tensor, "*batch"]
    kept_y: Int[Tensor, "*batch"]
    rank_x: Int[Tensor, "*batch"]
    rank_y: Int[Tensor, "*batch"]


def principal_angles(
    X: Float[Tensor, "*#batch n k"], Y: Float[Tensor, "*#batch n l"]
) -> Float64[Tensor, "*out q"]:
    """Principal angles between range(X) and range(Y), ascending.

    Args:
        X: columns that span the first space (..., n, k); they need not be orthonormal.
        Y: columns that span the second space (..., n, l).

    Returns:
        (..., min(k, l)) radians in float64; nan past the smaller numerical rank.

    >>> X = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    >>> Y = torch.tensor([[1.0], [0.0], [1.0]])
    >>> principal_angles(X, Y) * 180 / torch.pi
    tensor([45.], dtype=torch.float64)
    """
    k, l = X.shape[-1], Y.shape[-1]  # noqa: E741
    frame, full = _joint_frame(X, Y)
    first = (torch.arange(k + l, device=frame.device) < k).expand(*frame.shape[:-2], k + l)
    angles, _, _ = _angles(frame, full, torch.zeros_like(first), first, ~first)
    return angles[..., : min(k, l)]


def masked_angles(
    X: Float[Tensor, "*#batch d r"],
    mask_x: Bool[Tensor, "*#batch r"],
    mask_y: Bool[Tensor, "*#batch r"],
    *,
    Y: Float[Tensor, "*#batch d r"] | None = None,
) -> MaskedAngles:
    """Principal angles between range(X diag(mask_x)) and range(Y diag(mask_y)).

    Angles between masked row spaces of A (r, n) are those of the triangular factor of A^T, and of
    two frames those of the two blocks of the factor of [A_t^T, A_t'^T]: columns of X and Y are the
    rank directions in common orthonormal coordinates, of any number d (tall frames are compressed
    first).

    Without Y both masks act on X. Then the directions that both masks keep are deflated and their
    angles are exactly 0.0. Batches broadcast: X (modules, 1, d, r) with masks (modules, steps, r),
    or X (d, r) with masks (T, 1, r) and (T, r) for all pairs of T masks.

    Args:
        X: the first frame (..., d, r).
        mask_x: its kept directions (..., r), True = kept.
        mask_y: kept directions of the second frame (..., r).
        Y: the second frame (..., d, r); None takes X.

    Returns:
        A `MaskedAngles`; an empty mask has no angles.

    >>> on = lambda *kept: torch.isin(torch.arange(3), torch.tensor(kept))
    >>> masked_angles(torch.eye(3), on(0, 1), on(0, 2)).angles * 180 / torch.pi
    tensor([ 0., 90., nan], dtype=torch.float64)
    """
    r = X.shape[-1]
    if Y is None:
        frame, full = unit_frame(compressed(X))
        shared, only_x, only_y = mask_x & mask_y, mask_x & ~mask_y, mask_y & ~mask_x
    else:
        frame, full = _joint_frame(X, Y)
        only_x, only_y = pad(mask_x, (0, r)), pad(mask_y, (r, 0))
        shared = torch.zeros_like(only_x | only_y)
    angles, rank_x, rank_y = _angles(frame, full, shared, only_x, only_y)
    batch = angles.shape[:-1]
    return MaskedAngles(
        angles=angles[..., :r],
        shared=shared.sum(-1).expand(batch),
        kept_x=mask_x.sum(-1).expand(batch),
        kept_y=mask_y.sum(-1).expand(batch),
        rank_x=rank_x,
        rank_y=rank_y,
    )


def _joint_frame(
    X: Float[Tensor, "*#batch n k"], Y: Float[Tensor, "*#batch n l"]
) -> tuple[Tensor, Tensor]:
    """[X, Y] in at most k + l coordinates, unit columns, and whether X and Y have full rank."""
    k = X.shape[-1]
    batch = np.broadcast_shapes(X.shape[:-2], Y.shape[:-2])
    both = torch.cat([Z.to(torch.float64).expand(*batch, *Z.shape[-2:]) for Z in (X, Y)], dim=-1)
    both = compressed(both)
    (X, full_x), (Y, full_y) = (unit_frame(Z) for Z in (both[..., :k], both[..., k:]))
    return torch.cat([X, Y], dim=-1), full_x & full_y


def _angles(
    frame: Float64[Tensor, "*#batch d k"],
    full: Bool[Tensor, "*#batch"],
    shared: Bool[Tensor, "*#batch k"],
    only_x: Bool[Tensor, "*#batch k"],
    only_y: Bool[Tensor, "*#batch k"],
) -> tuple[Tensor, Tensor, Tensor]:
    """Angles (..., k) with nan padding and both ranks (...), a chunk of pairs at a time."""
    d, k = frame.shape[-2:]
    batch = np.broadcast_shapes(frame.shape[:-2], shared.shape[:-1])
    frames = frame.reshape(-1, d, k)
    index = torch.arange(len(frames), device=frame.device).reshape(frame.shape[:-2])
    index = index.expand(batch).reshape(-1)
    full = full.reshape(-1)[index]
    roles = torch.stack(
        [role.expand(*batch, k).reshape(-1, k) for role in (shared, only_x, only_y)]
    )
    angles = torch.full((len(index), k), torch.nan, dtype=torch.float64, device=frame.device)
    ranks = torch.zeros(len(index), 2, dtype=torch.int64, device=frame.device)
    by_size = roles.sum((0, -1)).argsort()  # the pairs of a chunk are padded to its largest one
    for method, chosen in ((_by_qr, full), (_by_svd, ~full)):
        where = by_size[chosen[by_size]]
        for start in range(0, len(where), CHUNK):
            pairs = where[start : start + CHUNK]
            residual, i, a, b = method(frames, index[pairs], *roles[:, pairs])
            angles[pairs] = _place(residual, i, torch.minimum(a, b), width=k)
            ranks[pairs] = torch.stack([i + a, i + b], dim=-1)
    ranks = ranks.reshape(*batch, 2)
    return angles.reshape(*batch, k), ranks[..., 0], ranks[..., 1]


# One pair below has i shared directions, a residual dimensions of X and b of Y.
Pieces = tuple[Tensor, Tensor, Tensor, Tensor]  # min(a, b) residual angles (pairs, ...), i, a, b


def _by_qr(
    frames: Float64[Tensor, "n d k"],
    index: Int[Tensor, " pairs"],
    shared: Bool[Tensor, "pairs k"],
    only_x: Bool[Tensor, "pairs k"],
    only_y: Bool[Tensor, "pairs k"],
) -> Pieces:
    """Frames of full column rank, through C (pairs, max a, max b) and S (pairs, max b, max b)."""
    i, a, b = shared.sum(-1), only_x.sum(-1), only_y.sum(-1)
    swap = b > a  # angles are symmetric, and the last columns set the size of C and S
    x, y = torch.maximum(a, b), torch.minimum(a, b)
    first, last = (
        torch.where(swap[:, None], *roles) for roles in ((only_y, only_x), (only_x, only_y))
    )
    place = 3 - 3 * shared.to(torch.int8) - 2 * first.to(torch.int8) - last.to(torch.int8)
    width, height = int((i + a + b).max()), int((a + b).max())
    order = place.argsort(dim=-1, stable=True)[:, :width]
    columns = frames.mT[index[:, None], order].mT  # each a contiguous copy, as LAPACK wants it
    R = torch.linalg.qr(columns, mode="r").R
    most_x, most_y = int(x.max()), int(y.max())
    Z = _block(R, rows=(i, x + y, height), columns=(i + x, y, most_y))
    # Absent columns come last, so they cannot disturb the basis of the others.
    Q = torch.linalg.qr(Z).Q if Z.numel() else Z
    C = _block(Q, rows=(0 * x, x, most_x), columns=(0 * y, y, most_y))
    S = _block(Q, rows=(x, y, most_y), columns=(0 * y, y, most_y))
    return _residual_angles(C, S, y), i, a, b


def _by_svd(
    frames: Float64[Tensor, "n d k"],
    index: Int[Tensor, " pairs"],
    shared: Bool[Tensor, "pairs k"],
    only_x: Bool[Tensor, "pairs k"],
    only_y: Bool[Tensor, "pairs k"],
) -> Pieces:
    """Any frames, through orthonormal bases with zero columns for dependent directions."""
    frame = frames[index]
    tolerance = dependence_tolerance(frame)
    common, i = orthonormal_basis(frame * shared[:, None, :], tolerance)
    Q_x, a = orthonormal_basis(reject(frame * only_x[:, None, :], common), tolerance)
    Q_y, b = orthonormal_basis(reject(frame * only_y[:, None, :], common), tolerance)
    return _residual_angles(Q_x.mT @ Q_y, reject(Q_y, Q_x), b), i, a, b


def _residual_angles(
    C: Float64[Tensor, "pairs x y"], S: Float64[Tensor, "pairs z y"], b: Int[Tensor, " pairs"]
) -> Float64[Tensor, "pairs q"]:
    """Ascending angles with the cosines svdvals(C) and, of b true columns, sines svdvals(S).

    Sines are computed for pairs that have an angle below 45 degrees only: where all cosines are at
    most 0.7, the error of an arc cosine is at most 1 / sin(theta) < 1.5 times that of the cosine.
    """
    if not C.numel():
        return C.new_zeros(len(C), 0)
    cosines = torch.linalg.svdvals(C)
    angles: Tensor = cosines.clamp(max=1.0).arccos()
    near = cosines[:, 0] > LARGEST_COSINE
    if near.any():
        # Columns that are absent add zeros at the end of the sines: the b true ones are reversed.
        reverse = b[near, None] - 1 - torch.arange(cosines.shape[-1], device=C.device)
        sines = torch.linalg.svdvals(S[near]).gather(-1, reverse.clamp(min=0))
        angles[near] = torch.atan2(sines, cosines[near])
    return angles


def _place(
    residual: Float64[Tensor, "pairs q"],
    i: Int[Tensor, " pairs"],
    count: Int[Tensor, " pairs"],
    *,
    width: int,
) -> Float64[Tensor, "pairs {width}"]:
    """The i shared zeros, then so many residual angles, then nan."""
    position = torch.arange(width, device=residual.device) - i[:, None]
    angles = pad(residual, (0, 1)).gather(-1, position.clamp(0, residual.shape[-1]))
    angles = torch.where(position < 0, 0.0, angles)
    return torch.where(position < count[:, None], angles, torch.nan)


Span = tuple[Tensor, Tensor, int]  # start (pairs,), length (pairs,), padded length


def _block(
    X: Float64[Tensor, "pairs x y"], *, rows: Span, columns: Span
) -> Float64[Tensor, "pairs h w"]:
    """A block of X for every pair, with zeros where it ends and where X does."""
    places, present = [], []
    for (start, length, size), end in zip((rows, columns), X.shape[-2:], strict=True):
        offset = torch.arange(size, device=X.device)
        place = start[:, None] + offset
        places.append(place.clamp(max=end - 1))
        present.append((offset < length[:, None]) & (place < end))
    index = places[0][:, :, None] * X.shape[-1] + places[1][:, None, :]
    block = X.flatten(1).gather(1, index.flatten(1)).view(index.shape)
    return block * (present[0][:, :, None] & present[1][:, None, :])
