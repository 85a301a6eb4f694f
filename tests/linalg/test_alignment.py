"""Amplification and projections on updates planted in the base weight's own bases."""

from __future__ import annotations

import math

import pytest
import torch

from subspace_lab.linalg import amplification, base_projection, base_svd, random_subspace


def planted() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    U, V = random_subspace(20, 15), random_subspace(15, 15)
    return (U * torch.arange(15, 0, -1.0, dtype=torch.float64)) @ V.T, U, V


def test_amplification_of_directions_that_the_base_has():
    """dW = 6 (u_2 v_2^T + u_5 v_5^T) over singular values 14 and 11."""
    W0, U, V = planted()
    result = amplification(W0, U[:, [1, 4]], V[:, [1, 4]].T, scaling=6.0)
    assert result.directions == 2
    assert result.update_norm == pytest.approx(6 * math.sqrt(2))
    assert result.projected_norm == pytest.approx(math.hypot(14, 11))
    assert result.factor == pytest.approx(6 * math.sqrt(2) / math.hypot(14, 11))
    assert result.base_norm == pytest.approx(W0.norm().item())
    assert result.update_to_base == pytest.approx(result.update_norm / result.base_norm)


def test_masks_and_fewer_directions():
    W0, U, V = planted()
    B, A = U[:, [1, 4]] * torch.tensor([3.0, 2.0]), V[:, [1, 4]].T
    assert amplification(W0, B, A, directions=1).projected_norm == pytest.approx(14)
    masked = amplification(W0, B, A, mask=torch.tensor([False, True]))
    assert (masked.directions, masked.factor) == (1, pytest.approx(2 / 11))


def test_projection_on_the_base():
    W0 = torch.randn(20, 15, dtype=torch.float64)
    B, A = torch.randn(20, 4, dtype=torch.float64), torch.randn(4, 15, dtype=torch.float64)
    mask = torch.tensor([True, True, False, True])
    base = base_svd(W0, rank=6)
    result = base_projection(base, B, A, mask=mask, scaling=2.0)
    dW = 2 * (B * mask) @ A
    torch.testing.assert_close(result.coefficients, base.U.T @ dW @ base.Vh.T)
    total = dW.square().sum()
    for share, projected in [
        (result.left_share, base.U.T @ dW),
        (result.right_share, dW @ base.Vh.T),
        (result.share, result.coefficients),
    ]:
        assert share == pytest.approx((projected.square().sum() / total).item())


def test_an_update_inside_the_base():
    W0, U, V = planted()
    result = base_projection(base_svd(W0, rank=5), U[:, 1:3], V[:, 2:4].T)
    assert (result.left_share, result.right_share) == (pytest.approx(1), pytest.approx(1))
    assert result.coefficients.abs().round().nonzero().tolist() == [[1, 2], [2, 3]]
