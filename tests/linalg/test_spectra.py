"""Spectra, norms and inner products of scaling B diag(mask) A against the dense product."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from subspace_lab import linalg
from subspace_lab.linalg import (
    frobenius_norm,
    inner_product,
    singular_values,
    singular_vectors,
    triangular_factor,
)

SHAPES = [(30, 20, 4), (3, 20, 4), (30, 2, 4), (4, 4, 4)]


def factors(m: int, n: int, r: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(m, r, dtype=torch.float64), torch.randn(r, n, dtype=torch.float64)


def random_masks(*shape: int) -> torch.Tensor:
    return torch.rand(shape) < 0.5


def dense(B, A, mask, scaling):
    return scaling * (B * mask[..., None, :]) @ A


@pytest.mark.parametrize(("m", "n", "r"), SHAPES)
def test_singular_values_of_every_mask(m, n, r):
    B, A = factors(m, n, r)
    masks = torch.cartesian_prod(*[torch.tensor([False, True])] * r)
    sigma = singular_values(B, A, mask=masks, scaling=0.7)
    true = torch.linalg.svdvals(dense(B, A, masks, 0.7))[:, :r]
    assert sigma.shape == (2**r, r)
    assert (sigma[:, : true.shape[1]] - true).abs().max() < 1e-13
    # At most as many non-zeros as directions: the others are exact.
    assert torch.equal((sigma > 0).sum(-1), masks.sum(-1).clamp(max=min(m, n)))


def test_planted_spectrum_against_fifty_digits(exact_singular_values):
    """Ratios down to 1e-12: the absolute error stays at rounding of the largest value."""
    U, V = (linalg.random_subspace(40, 6) for _ in range(2))
    root = torch.logspace(0, -6, 6, dtype=torch.float64)
    G = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64)).Q
    B, A = (U * root) @ G, G.T @ (root[:, None] * V.T)
    R_B, R_A = triangular_factor(B), triangular_factor(A.T)
    sigma = singular_values(B, A)
    assert (sigma - root**2).abs().max() < 1e-15
    assert (sigma - exact_singular_values(R_B @ R_A.T)).abs().max() < 1e-15


@pytest.mark.parametrize(("m", "n", "r"), SHAPES)
def test_singular_vectors_rebuild_the_update(m, n, r):
    B, A = factors(m, n, r)
    mask = torch.tensor([True, True, False, True])
    svd = singular_vectors(B, A, mask=mask, scaling=2.0)
    k = min(m, n, r)
    torch.testing.assert_close((svd.U * svd.S) @ svd.Vh, dense(B, A, mask, 2.0))
    torch.testing.assert_close(svd.U.T @ svd.U, torch.eye(k, dtype=torch.float64))
    torch.testing.assert_close(svd.Vh @ svd.Vh.T, torch.eye(k, dtype=torch.float64))
    assert svd.numerical_rank == min(m, n, 3)
    assert svd.residual < 1e-14


def test_residual_tells_wrong_triplets():
    B, A = factors(10, 8, 3)
    svd = singular_vectors(B, A)
    MV, MtU = B @ (A @ svd.Vh.T), A.T @ (B.T @ svd.U)
    rounding = torch.tensor(0.0, dtype=torch.float64)
    wrong = linalg.spectra.with_evidence(
        svd.U, 1.1 * svd.S, svd.Vh, MV=MV, MtU=MtU, rounding=rounding
    )
    assert abs(wrong.residual - 0.1 / 1.1) < 1e-12


def test_leading_triplets_and_masks_batch():
    B, A = factors(12, 9, 4)
    masks = random_masks(5, 4) | torch.tensor([True, False, False, True])
    svd = singular_vectors(B, A, mask=masks, rank=2)
    assert svd.U.shape == (5, 12, 2)
    assert svd.Vh.shape == (5, 2, 9)
    torch.testing.assert_close(svd.S, singular_values(B, A, mask=masks)[:, :2])


def test_an_update_that_is_zero():
    B, A = torch.zeros(10, 3), torch.randn(3, 8)
    assert torch.equal(singular_values(B, A), torch.zeros(3, dtype=torch.float64))
    assert frobenius_norm(B, A) == 0
    svd = singular_vectors(B, A)
    assert (svd.numerical_rank, svd.residual) == (0, 0)


def test_norm_and_inner_product():
    (B1, A1), (B2, A2) = factors(15, 10, 3), factors(15, 10, 5)
    mask = torch.tensor([True, False, True])
    torch.testing.assert_close(
        frobenius_norm(B1, A1, mask=mask, scaling=-2.0), dense(B1, A1, mask, 2.0).norm()
    )
    torch.testing.assert_close(inner_product(B1, A1, B2, A2), ((B1 @ A1) * (B2 @ A2)).sum())


def test_norm_survives_cancellation():
    """Columns of B that nearly cancel: a trace of Gram matrices has no correct digit here."""
    b, a = torch.randn(30, 1, dtype=torch.float64), torch.randn(1, 20, dtype=torch.float64)
    B, A = torch.cat([b, -b], dim=1), torch.cat([a, a + 1e-9 * torch.randn_like(a)])
    true = (b @ (A[:1] - A[1:])).norm()
    assert abs(frobenius_norm(B, A) / true - 1) < 1e-5


def test_a_product_that_cancels_is_zero():
    """A saved PiSSA at step 0, [B, -B] [A; A], is rounding noise in floating point."""
    B, A = factors(40, 30, 4)
    B, A = torch.cat([B, -B], dim=1), torch.cat([A, A])
    assert torch.equal(singular_values(B, A), torch.zeros(8, dtype=torch.float64))
    assert frobenius_norm(B, A, scaling=3.0) == 0
    svd = singular_vectors(B, A, scaling=3.0)
    assert svd.numerical_rank == 0 and not svd.S.any()
    kept = torch.tensor([True] * 4 + [False] * 4)  # one of each pair: nothing cancels
    assert (singular_values(B, A, mask=kept)[:4] > 0).all()


@pytest.mark.parametrize("size", [1e-6, 1e-9, 1e-12])
def test_what_cancellation_leaves_has_its_own_rank(size):
    """[B, -B] [A; A + E], E of rank one: rank one, however small beside B and A."""
    B, A = factors(40, 30, 4)
    E = size * torch.randn(4, 1, dtype=torch.float64) * torch.randn(30, dtype=torch.float64)
    B, A = torch.cat([B, -B], dim=1), torch.cat([A, A + E])
    sigma = singular_values(B, A)
    assert (sigma > 0).sum() == 1
    true = (B[:, 4:] @ (A[4:] - A[:4])).norm()
    assert abs(sigma[0] / true - 1) < 1e-14 / size
    assert singular_vectors(B, A).numerical_rank == 1


def test_rounding_follows_the_terms_not_the_norms():
    """c b_i and a_i / c are the same update: a product of long and short vectors keeps its rank."""
    B, A = factors(40, 30, 4)
    lengths = torch.logspace(-9, 9, 4, dtype=torch.float64)
    sigma = singular_values(B * lengths, A / lengths[:, None])
    torch.testing.assert_close(sigma, singular_values(B, A), rtol=1e-12, atol=0)


def test_delta_weight_of_peft():
    peft = pytest.importorskip("peft")
    model = torch.nn.Sequential(torch.nn.Linear(24, 18))
    config = peft.LoraConfig(r=6, lora_alpha=9, target_modules=["0"], use_rslora=True)
    layer = peft.get_peft_model(model, config).base_model.model[0]
    torch.nn.init.normal_(layer.lora_B["default"].weight)
    B, A = layer.lora_B["default"].weight, layer.lora_A["default"].weight
    sigma = singular_values(B.detach(), A.detach(), scaling=layer.scaling["default"])
    true = torch.linalg.svdvals(layer.get_delta_weight("default").detach())[:6]
    torch.testing.assert_close(sigma.float(), true, rtol=1e-5, atol=1e-5)


seeds = st.integers(0, 2**31)


@settings(max_examples=30, deadline=None)
@given(seed=seeds, scaling=st.floats(-100, 100))
def test_invariances(seed, scaling):
    torch.manual_seed(seed)
    B, A = factors(20, 15, 5)
    mask = random_masks(5)
    sigma = singular_values(B, A, mask=mask)
    Q_m, Q_n = linalg.random_subspace(20, 20), linalg.random_subspace(15, 15)
    order = torch.randperm(5)
    same = [
        singular_values(Q_m @ B, A @ Q_n, mask=mask),
        singular_values(B[:, order], A[order], mask=mask[order]),
        singular_values(A.T, B.T, mask=mask),
    ]
    for other in same:
        torch.testing.assert_close(other, sigma, rtol=0, atol=1e-12)
    scaled = singular_values(B, A, mask=mask, scaling=scaling)
    torch.testing.assert_close(scaled, abs(scaling) * sigma, rtol=1e-12, atol=1e-11)


@settings(max_examples=30, deadline=None)
@given(seed=seeds)
def test_gauge_moves_the_masked_spectrum_only(seed):
    torch.manual_seed(seed)
    B, A = factors(20, 15, 5)
    G = torch.randn(5, 5, dtype=torch.float64) + 3 * torch.eye(5, dtype=torch.float64)
    moved = B @ G, torch.linalg.solve(G, A)
    torch.testing.assert_close(singular_values(*moved), singular_values(B, A), rtol=0, atol=1e-9)
    mask = torch.tensor([True, True, False, False, False])
    gap = singular_values(*moved, mask=mask) - singular_values(B, A, mask=mask)
    assert gap.abs().max() > 1e-3


@settings(max_examples=50, deadline=None)
@given(seed=seeds)
def test_weyl_and_interlacing_bounds_of_masks(seed):
    """sigma_{j+c}(BA) <= sigma_j(BDA) <= sigma_{j-c}(BA), c the number of dropped directions."""
    torch.manual_seed(seed)
    r = 6
    B, A = factors(12, 10, r)
    mask = random_masks(r)
    dropped = int((~mask).sum())
    full, masked = singular_values(B, A), singular_values(B, A, mask=mask)
    assert (full[dropped:] <= masked[: r - dropped] + 1e-12).all()
    assert (masked[dropped:] <= full[: r - dropped] + 1e-12).all()
    single, part = (torch.linalg.svdvals(X) for X in (A, A[mask]))
    assert (part <= single[: len(part)] + 1e-12).all()
    assert (single[dropped:] <= part + 1e-12).all()
