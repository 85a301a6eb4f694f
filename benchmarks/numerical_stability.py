"""Measure the errors in docs/numerical-stability.md and rewrite the table there.

    python -m benchmarks.numerical_stability       # under a minute on one core

Every case is planted: the true value is known by construction, or from the same numbers at 50
digits. The table lies between two markers in the page; its prose is left alone.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import mpmath
import scipy.linalg
import torch
from torch import Tensor
from tqdm import tqdm

from subspace_lab import linalg

PAGE = Path(__file__).parents[1] / "docs" / "numerical-stability.md"
START, END = "<!-- table: start -->", "<!-- table: end -->"
HEADER = "| quantity | arithmetic | algorithm | error |\n|---|---|---|---|"
N, R = 1024, 16


class Row(NamedTuple):
    """One line of the table."""

    quantity: str
    arithmetic: str
    algorithm: str
    error: str


def orthonormal(n: int, k: int) -> Tensor:
    return linalg.random_subspace(n, k)


# --- the smallest singular value of an update -----------------------------------------------------


def gram_values(B: Tensor, A: Tensor) -> Tensor:
    """Square roots of the eigenvalues of (B^T B)(A A^T), symmetrised by a Cholesky factor."""
    L = torch.linalg.cholesky(A @ A.T)
    return torch.linalg.eigvalsh(L.T @ (B.T @ B) @ L).clamp(min=0).sqrt().flip(0)


def qr_values(B: Tensor, A: Tensor) -> Tensor:
    R_B, R_A = (torch.linalg.qr(X, mode="r").R for X in (B, A.T))
    return torch.linalg.svdvals(R_B @ R_A.T)


def dense_values(B: Tensor, A: Tensor) -> Tensor:
    return torch.linalg.svdvals(B @ A)[:R]


def core_values(B: Tensor, A: Tensor) -> Tensor:
    return linalg.singular_values(B, A)


def smallest_singular_value() -> Iterator[Row]:
    for spread in (1e4, 1e8):
        sigma = torch.logspace(0, -math.log10(spread), R, dtype=torch.float64)
        gauge = orthonormal(R, R)
        B = orthonormal(N, R) * sigma.sqrt() @ gauge
        A = gauge.T @ (sigma.sqrt()[:, None] * orthonormal(N, R).T)
        contestants: list[tuple[str, torch.dtype, Callable[[Tensor, Tensor], Tensor]]] = [
            ("dense svdvals(B A)", torch.float32, dense_values),
            ("Gram matrices", torch.float32, gram_values),
            ("thin QR", torch.float32, qr_values),
            ("Gram matrices", torch.float64, gram_values),
            ("`singular_values`", torch.float64, core_values),
        ]
        for name, dtype, compute in contestants:
            try:
                error = relative(compute(B.to(dtype), A.to(dtype))[-1].double(), sigma[-1])
            except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
                error = "breaks down"
            yield Row(
                f"smallest of {R} singular values, spread {spread:.0e}", bits(dtype), name, error
            )


# --- triangular factors of ill-conditioned and singular matrices ----------------------------------


def cholesky_qr(X: Tensor) -> Tensor:
    return torch.linalg.cholesky(X.T @ X, upper=True)


def triangular_factors() -> Iterator[Row]:
    spectrum = torch.logspace(0, -12, R, dtype=torch.float64)
    graded = orthonormal(N, R) * spectrum @ orthonormal(R, R)
    repeated = torch.randn(N, 1, dtype=torch.float64).expand(N, R)
    cases = [
        ("condition 1e12", graded, spectrum),
        ("one column, repeated", repeated, torch.linalg.svdvals(repeated)),
    ]
    for name, X, true in cases:
        for algorithm, compute in [
            ("CholeskyQR", cholesky_qr),
            ("`triangular_factor`, cholesky", lambda X: factor(X, "cholesky")),
            ("`triangular_factor`, householder", lambda X: factor(X, "householder")),
        ]:
            try:
                gap = torch.linalg.svdvals(compute(X)) - true
                error = f"{float(gap.abs().max() / true[0]):.0e}"
            except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
                error = "breaks down"
            yield Row(f"singular values of R / largest, {name}", "float64", algorithm, error)


def factor(X: Tensor, algorithm: linalg.Algorithm) -> Tensor:
    return linalg.triangular_factor(X, algorithm=algorithm)


# --- principal angles -----------------------------------------------------------------------------


def planted_angles(theta: list[float]) -> tuple[Tensor, Tensor]:
    angle, q = torch.tensor(theta, dtype=torch.float64), len(theta)
    frame = orthonormal(N, 2 * q)
    X, Y = frame[:, :q], frame[:, :q] * angle.cos() + frame[:, q:] * angle.sin()
    return X @ orthonormal(q, q), Y @ orthonormal(q, q)


def exact_angles(X: Tensor, Y: Tensor) -> Tensor:
    """From 50-digit arithmetic on the same entries: arccos is harmless there."""
    with mpmath.workdps(50):
        x, y = mpmath.matrix(X.tolist()), mpmath.matrix(Y.tolist())
        L_x, L_y = mpmath.cholesky(x.T * x), mpmath.cholesky(y.T * y)
        cosines = mpmath.svd_r(L_x**-1 * (x.T * y) * (L_y.T) ** -1, compute_uv=False)
        exact = sorted(float(mpmath.acos(min(c, mpmath.mpf(1)))) for c in cosines)
        return torch.tensor(exact, dtype=torch.float64)


def gram_angles(X: Tensor, Y: Tensor) -> Tensor:
    L_x, L_y = (torch.linalg.cholesky(Z.T @ Z) for Z in (X, Y))
    cross = torch.linalg.solve(L_x, torch.linalg.solve(L_y, Y.T @ X).T)
    return torch.linalg.svdvals(cross).clamp(max=1).arccos()


def scipy_angles(X: Tensor, Y: Tensor) -> Tensor:
    return torch.from_numpy(scipy.linalg.subspace_angles(X.numpy(), Y.numpy())[::-1].copy())


def angles() -> Iterator[Row]:
    for theta in ([1e-3, 1.5], [1e-8, 1.5], [1e-10, 1.5]):
        X, Y = planted_angles(theta)
        true = exact_angles(X, Y)
        for name, dtype, compute in [
            ("Gram matrices, arccos", torch.float32, gram_angles),
            ("Gram matrices, arccos", torch.float64, gram_angles),
            ("scipy.linalg.subspace_angles", torch.float64, scipy_angles),
            ("`principal_angles`", torch.float64, linalg.principal_angles),
        ]:
            found = compute(X.to(dtype), Y.to(dtype)).double()
            quantity = f"angle of {theta[0]:.0e} rad beside one of {theta[1]} rad"
            yield Row(quantity, bits(dtype), name, relative(found[0], true[0]))


def shared_directions() -> Iterator[Row]:
    """Directions in both masks have angle 0: the largest of them over 50 pairs of masks."""
    frame = torch.randn(N, R, dtype=torch.float64)
    masks = torch.rand(51, R) < 0.5
    pairs = [(x, y) for x, y in itertools.pairwise(masks) if (x & y).any()]
    quantity = "largest angle of a shared direction, 50 pairs of masks"
    for name, dtype, compute in [
        ("scipy.linalg.subspace_angles", torch.float32, scipy_angles),
        ("scipy.linalg.subspace_angles", torch.float64, scipy_angles),
        ("`principal_angles`", torch.float64, linalg.principal_angles),
    ]:
        stored = frame.to(dtype)
        found = [compute(stored[:, x], stored[:, y])[: int((x & y).sum())].max() for x, y in pairs]
        yield Row(quantity, bits(dtype), name, absolute(max(found)))
    result = linalg.masked_angles(frame, masks[:-1], masks[1:])
    zeros = result.angles[torch.arange(R) < result.shared[:, None]]
    yield Row(quantity, "float64", "`masked_angles`", absolute(zeros.max()))


# --- what storage has already lost ----------------------------------------------------------------


def storage_floor() -> Iterator[Row]:
    """The angle between a frame and its rounding to a storage type."""
    for condition in (1e0, 1e2):
        scale = torch.logspace(0, -math.log10(condition), R, dtype=torch.float64)
        X = orthonormal(N, R) * scale @ orthonormal(R, R)
        for dtype in (torch.float32, torch.bfloat16):
            floor = linalg.principal_angles(X, X.to(dtype).double()).max()
            quantity = f"angle of a frame to its stored copy, condition {condition:.0e}"
            yield Row(quantity, f"stored as {bits(dtype)}", "`principal_angles`", absolute(floor))


def update_from_merged_weights() -> Iterator[Row]:
    """An update of eight equal singular values, recovered as (W0 + dW) - W0."""
    U, V = orthonormal(N, 8), orthonormal(N, 8)
    W0 = torch.randn(N, N, dtype=torch.float64) / N**0.5
    for dtype in (torch.float32, torch.bfloat16):
        merged, base = ((W0 + dW).to(dtype).double() for dW in (0.1 * U @ V.T, 0 * W0))
        rank = linalg.effective_rank(torch.linalg.svdvals(merged - base))
        quantity = "entropy effective rank of merged - base, true value 8"
        yield Row(quantity, f"stored as {bits(dtype)}", "dense svdvals", f"found {rank:.1f}")
    rank = linalg.effective_rank(linalg.singular_values((0.1 * U).bfloat16(), V.T.bfloat16()))
    yield Row(quantity, "factors in bfloat16", "`singular_values`", f"found {rank:.3f}")


def bits(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def relative(found: Tensor, true: Tensor) -> str:
    return f"{abs(float(found / true) - 1):.0e} relative"


def absolute(found: Tensor) -> str:
    return f"{float(found):.0e} rad" if found else "0"


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    sections = [
        smallest_singular_value,
        triangular_factors,
        angles,
        shared_directions,
        storage_floor,
        update_from_merged_weights,
    ]
    rows = [row for section in tqdm(sections) for row in section()]
    table = "\n".join([HEADER, *(f"| {' | '.join(row)} |" for row in rows)])
    before, rest = PAGE.read_text(encoding="utf-8").split(START)
    _, after = rest.split(END)
    PAGE.write_text(f"{before}{START}\n{table}\n{END}{after}", encoding="utf-8")
    print(PAGE)


if __name__ == "__main__":
    main()
