"""Oracles at 50 digits. The float64 entries that they are given count as exact."""

from __future__ import annotations

from collections.abc import Callable

import mpmath
import pytest
import torch
from torch import Tensor

DIGITS = 50


def matrix(X: Tensor) -> mpmath.matrix:
    return mpmath.matrix(X.tolist())


def singular_values(X: Tensor) -> Tensor:
    """sqrt(eig(X^T X)): at 50 digits the Gram matrix costs nothing that matters."""
    with mpmath.workdps(DIGITS):
        exact = matrix(X)
        values = mpmath.eigsy(exact.T * exact, eigvals_only=True)
        roots = sorted((float(mpmath.sqrt(abs(v))) for v in values), reverse=True)
        return torch.tensor(roots, dtype=torch.float64)


def angles(X: Tensor, Y: Tensor) -> Tensor:
    with mpmath.workdps(DIGITS):
        Q_x, Q_y = (mpmath.qr(matrix(Z), mode="skinny")[0] for Z in (X, Y))
        cosines = mpmath.svd_r(Q_x.T * Q_y, compute_uv=False)
        exact = sorted(float(mpmath.acos(min(c, mpmath.mpf(1)))) for c in cosines)
        return torch.tensor(exact, dtype=torch.float64)


@pytest.fixture
def exact_singular_values() -> Callable[[Tensor], Tensor]:
    return singular_values


@pytest.fixture
def exact_angles() -> Callable[[Tensor, Tensor], Tensor]:
    return angles


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)
