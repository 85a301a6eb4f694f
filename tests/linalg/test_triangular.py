"""R^T R = X^T X for every shape, rank and algorithm, to the accuracy of Householder QR."""

from __future__ import annotations

import pytest
import torch

from subspace_lab.linalg import singular_values, triangular_factor, update_core

EPS = torch.finfo(torch.float64).eps
ALGORITHMS = ["householder", "cholesky"]


def matrices(n: int, k: int) -> dict[str, torch.Tensor]:
    gaussian = torch.randn(n, k, dtype=torch.float64)
    return {
        "gaussian": gaussian,
        "zero": torch.zeros(n, k),
        "one column repeated": gaussian[:, :1].expand(n, k),
        "a zero column": gaussian * (torch.arange(k) != 1),
        "rank two": gaussian[:, :2] @ torch.randn(2, k, dtype=torch.float64),
        "graded columns": gaussian * torch.logspace(0, -30, k),
        "ill-conditioned": gaussian[:, :1] + gaussian * torch.logspace(0, -12, k),
    }


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("shape", [(200, 6), (6, 6), (3, 6), (40, 2)])
@pytest.mark.parametrize("kind", matrices(2, 2))
def test_gram_matrix_is_reproduced(algorithm, shape, kind):
    X = matrices(*shape)[kind].to(torch.float64)
    R = triangular_factor(X, algorithm=algorithm)
    lengths = X.norm(dim=0)
    assert R.shape == (shape[1], shape[1])
    assert torch.equal(R, R.triu())
    assert (R.diagonal() >= 0).all()
    # Column by column: short columns keep their digits beside long ones.
    bound = 30 * EPS * lengths[:, None] * lengths
    assert ((R.T @ R - X.T @ X).abs() <= bound).all()


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("ratio", [1e-3, 1e-8, 1e-12])
def test_planted_spectrum_against_fifty_digits(algorithm, ratio, exact_singular_values):
    U = torch.linalg.qr(torch.randn(60, 8, dtype=torch.float64)).Q
    V = torch.linalg.qr(torch.randn(8, 8, dtype=torch.float64)).Q
    X = (U * torch.logspace(0, torch.tensor(ratio).log10().item(), 8)) @ V.T
    sigma = torch.linalg.svdvals(triangular_factor(X, algorithm=algorithm))
    assert (sigma - exact_singular_values(X)).abs().max() < 10 * EPS


def test_algorithms_agree_on_full_rank():
    X = torch.randn(5, 100, 7, dtype=torch.float64)
    householder, cholesky = (triangular_factor(X, algorithm=name) for name in ALGORITHMS)
    torch.testing.assert_close(householder, cholesky, rtol=0, atol=1e-13)


def test_shifted_cholesky_at_the_size_of_a_large_adapter():
    X = torch.randn(4096, 64, dtype=torch.float64)
    X[:, 1] = X[:, 0]
    sigma, true = (
        torch.linalg.svdvals(triangular_factor(X, algorithm=name)) for name in reversed(ALGORITHMS)
    )
    assert (sigma - true).abs().max() < 20 * EPS * true[0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_low_precision_is_raised_first(dtype):
    X = torch.randn(50, 4).to(dtype)
    assert torch.equal(triangular_factor(X), triangular_factor(X.to(torch.float64)))


def test_unknown_algorithm():
    with pytest.raises((ValueError, TypeError)):
        triangular_factor(torch.eye(2), algorithm="gram")  # type: ignore[arg-type]


def test_a_core_goes_in_as_it_is():
    B, A = torch.randn(30, 4), torch.randn(4, 20)
    mask = torch.tensor([True, False, True, True])
    R_B, R_A = triangular_factor(B), triangular_factor(A.T)
    assert torch.equal(update_core(B, A, mask=mask), (R_B * mask) @ R_A.T)
    assert torch.equal(singular_values(R_B, R_A.T), singular_values(B, A))
