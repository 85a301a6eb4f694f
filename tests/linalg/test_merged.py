"""Lanczos against the dense decomposition, and the cache of base factorisations."""

from __future__ import annotations

import pytest
import torch

from subspace_lab.linalg import base_svd, merged_svd


def problem(m: int, n: int, r: int = 3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return torch.randn(m, n) / n**0.5, torch.randn(m, r), torch.randn(r, n) / 5


@pytest.mark.parametrize("shape", [(90, 60), (60, 90), (60, 60)])
@pytest.mark.parametrize("rank", [1, 8, 50, 60])
def test_leading_triplets_of_the_merged_weight(shape, rank):
    W0, B, A = problem(*shape)
    mask = torch.tensor([True, False, True])
    svd = merged_svd(W0, B, A, rank=rank, mask=mask, scaling=0.5)
    merged = W0.double() + 0.5 * (B.double() * mask) @ A.double()
    torch.testing.assert_close(svd.S, torch.linalg.svdvals(merged)[:rank], rtol=0, atol=1e-12)
    torch.testing.assert_close(merged @ svd.Vh.T, svd.U * svd.S, rtol=0, atol=1e-9)
    assert svd.U.shape == (shape[0], rank)
    assert svd.residual < 1e-9


@pytest.mark.parametrize("scaling", [0.0, 0.3])
def test_weights_on_which_arpack_fails(scaling):
    """Few distinct singular values, down to none: the dense decomposition steps in."""
    B, A = torch.randn(60, 3, dtype=torch.float64), torch.randn(3, 60, dtype=torch.float64)
    isometry = torch.linalg.qr(torch.randn(60, 60, dtype=torch.float64)).Q
    for W0 in (3 * torch.eye(60).double(), isometry, torch.zeros(60, 60).double()):
        svd = merged_svd(W0, B, A, rank=5, scaling=scaling)
        true = torch.linalg.svdvals(W0 + scaling * B @ A)
        torch.testing.assert_close(svd.S, true[:5], rtol=0, atol=1e-12)
        assert svd.numerical_rank == (true[:5] > 1e-9).sum()
        assert svd.residual < 1e-9


def test_a_loose_tolerance_shows_in_the_residual():
    W0, B, A = problem(300, 300)
    loose = merged_svd(W0, B, A, rank=10, tolerance=1e-2).residual
    assert merged_svd(W0, B, A, rank=10).residual < 1e-9 < loose


def test_rank_out_of_range():
    with pytest.raises(ValueError, match=r"rank must be in 1\.\.20"):
        merged_svd(*problem(30, 20), rank=21)


def test_all_triplets_rebuild_the_weight():
    W0 = torch.randn(12, 10, dtype=torch.float64)
    svd = base_svd(W0)
    torch.testing.assert_close((svd.U * svd.S) @ svd.Vh, W0)
