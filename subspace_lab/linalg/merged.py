"""Leading singular triplets of a base weight W0, alone and merged with its update.

Lanczos (ARPACK, through SciPy's svds) needs products x -> W0 x + scaling B D (A x) only, so that
W0 + scaling B D A is not formed unless most of its triplets are asked for.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import scipy
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor

from .spectra import LowRankSVD, with_evidence
from .triangular import PRODUCT_TOLERANCE, masked_columns, product_rounding


def merged_svd(
    W0: Float[Tensor, "m n"],
    B: Float[Tensor, "m r"],
    A: Float[Tensor, "r n"],
    *,
    rank: int,
    mask: Bool[Tensor, " r"] | None = None,
    scaling: float = 1.0,
    tolerance: float = 1e-10,
) -> LowRankSVD:
    """The `rank` largest singular triplets of W0 + scaling B diag(mask) A.

    Args:
        W0: base weight (m, n); raised to float64 for the products, 8 m n bytes.
        B: left factor (m, r).
        A: right factor (r, n).
        rank: how many triplets, at most min(m, n).
        mask: kept rank directions (r,), True = kept; None keeps all.
        scaling: the factor in front of B A.
        tolerance: relative accuracy asked of Lanczos; what was reached is in `residual`. Where
            ARPACK fails, a dense decomposition is computed.

    Returns:
        A `LowRankSVD` in float64.

    Raises:
        ValueError: if rank is not in 1..min(m, n).
    """
    m, n = W0.shape
    if not 1 <= rank <= min(m, n):
        raise ValueError(f"rank must be in 1..{min(m, n)} for a {m} x {n} weight, not {rank}")
    W0, A = W0.to(torch.float64), A.to(torch.float64)
    BD = scaling * masked_columns(B.to(torch.float64), mask)

    def product(X: Tensor) -> Tensor:
        return W0 @ X + BD @ (A @ X)

    def adjoint(X: Tensor) -> Tensor:
        return W0.T @ X + A.T @ (BD.T @ X)

    triplets = None
    if 2 * rank < min(m, n):  # else Lanczos saves nothing, and ARPACK cannot compute all triplets
        triplets = _lanczos(product, adjoint, W0, rank=rank, tolerance=tolerance)
    if triplets is None:
        U, S, Vh = torch.linalg.svd(W0 + BD @ A, full_matrices=False)
        triplets = U[:, :rank], S[:rank], Vh[:rank]
    U, S, Vh = triplets
    rounding = PRODUCT_TOLERANCE * torch.linalg.matrix_norm(W0)
    rounding = rounding + product_rounding(B, A, mask=mask, scaling=scaling)
    return with_evidence(U, S, Vh, MV=product(Vh.T), MtU=adjoint(U), rounding=rounding)


def base_svd(W0: Float[Tensor, "m n"], *, rank: int | None = None) -> LowRankSVD:
    """The `rank` largest singular triplets of a base weight.

    Args:
        W0: base weight (m, n).
        rank: how many triplets, by Lanczos; None computes all min(m, n) by a dense SVD.

    Returns:
        A `LowRankSVD` in float64.
    """
    m, n = W0.shape
    nothing = W0.new_zeros(m, 0), W0.new_zeros(0, n)
    return merged_svd(W0, *nothing, rank=min(m, n) if rank is None else rank)


def _lanczos(
    product: Callable[[Tensor], Tensor],
    adjoint: Callable[[Tensor], Tensor],
    W0: Float[Tensor, "m n"],
    *,
    rank: int,
    tolerance: float,
) -> tuple[Tensor, Tensor, Tensor] | None:
    """Leading triplets by ARPACK; None where it cannot compute them.

    A Krylov space holds one vector of a singular value, however often that repeats, so ARPACK ends
    with an error on matrices of few distinct singular values: zero, a multiple of an isometry, an
    isometry with a low-rank update.
    """
    operator = scipy.sparse.linalg.LinearOperator(
        shape=W0.shape,
        dtype=np.float64,
        matvec=_on_arrays(product, W0.device),
        rmatvec=_on_arrays(adjoint, W0.device),
        matmat=_on_arrays(product, W0.device),
        rmatmat=_on_arrays(adjoint, W0.device),
    )
    start = np.random.default_rng(0).standard_normal(min(W0.shape))
    try:
        arrays = scipy.sparse.linalg.svds(operator, k=rank, tol=tolerance, v0=start)
    except scipy.sparse.linalg.ArpackError:
        return None
    # Ascending order, and views with negative strides that torch does not take.
    U, S, Vh = (torch.from_numpy(array.copy()).to(W0.device) for array in arrays)
    return U.flip(-1), S.flip(-1), Vh.flip(0)


def _on_arrays(
    function: Callable[[Tensor], Tensor], device: torch.device
) -> Callable[[NDArray[np.float64]], NDArray[np.float64]]:
    return lambda x: function(torch.from_numpy(x).to(device)).cpu().numpy()
