import math

import numpy as np
import pytest
import torch

from subspace_lab.theory.enumeration import all_masks, mask_probabilities
from subspace_lab.theory.gauge import (
    balance_slope,
    expected_gauge_drift,
    expected_haar_gauge_drift,
    gauge_drift,
    gauge_matrix,
    haar_energy,
    haar_moments,
    sgd_gauge_step,
)

M, R, WIDTH, N = 5, 3, 6, 3


def problem(seed=0):
    draw = torch.Generator().manual_seed(seed)
    shapes = [(M, R), (R, WIDTH), (WIDTH, N), (M, N)]
    return [torch.randn(shape, dtype=torch.float64, generator=draw) for shape in shapes]


def gradients(B, A, X, Y, P, s):
    """Autograd on (1/2N)||Y - s B P A X||^2; P is (r, r), or (N, r, r) with one per token."""

    def loss(B, A):
        Z = torch.einsum("...ij,jt->...it", P, A @ X)
        Z = Z if P.ndim == 2 else torch.einsum("tit->it", Z)
        return (Y - s * B @ Z).square().sum() / (2 * N)

    return torch.func.grad(loss, argnums=(0, 1))(B, A)


def diagonals(masks):
    return torch.diag_embed(masks.double())


def worst(a, b):
    return (a - b).abs().max()


def test_gradient_flow_conserves_the_whole_matrix_without_masks(deviation):
    B, A, X, Y = problem()
    step = sgd_gauge_step(
        B, A, *gradients(B, A, X, Y, torch.eye(R).double(), 1.0), learning_rate=1.0
    )
    deviation(
        "T13: LoRA's flow conserves B^T B - A A^T",
        sgd_gauge_step,
        step.first_order.abs().max(),
        1e-12,
    )


@pytest.mark.parametrize("granularity", ["step", "token"])
def test_masked_sgd_step(granularity, deviation):
    B, A, X, Y = problem(1)
    eta, s = 0.1, 2.0
    masks = all_masks(R) if granularity == "step" else all_masks(R * N).reshape(-1, N, R)[::7]
    off_diagonal = 0.0
    for P in diagonals(masks):
        grad_B, grad_A = gradients(B, A, X, Y, P, s)
        found = sgd_gauge_step(B, A, grad_B, grad_A, learning_rate=eta)
        taken = gauge_matrix(B - eta * grad_B, A - eta * grad_A) - gauge_matrix(B, A)
        deviation(
            "T13: change of C under an SGD step", sgd_gauge_step, worst(found.total, taken), 1e-11
        )
        deviation(
            f"T13: per-{granularity} masked flow conserves the diagonal",
            sgd_gauge_step,
            found.first_order.diagonal().abs().max(),
            1e-12,
        )
        squares = eta**2 * (grad_B.square().sum(0) - grad_A.square().sum(1))
        deviation(
            "T13: Delta(||b_i||^2 - ||a_i||^2) = eta^2 (||g_B,i||^2 - ||g_A,i||^2)",
            sgd_gauge_step,
            worst(taken.diagonal(), squares),
            1e-11,
        )
        off_diagonal = max(off_diagonal, found.first_order.abs().max().item())
    assert off_diagonal > 0.1  # the off-diagonal is not conserved


def test_drift_under_one_mask(deviation):
    B, A, X, Y = problem(2)
    s = 1.5 * 0.7
    for mask in all_masks(R):
        D = torch.diag(mask.double())
        grads = gradients(B, A, X, Y, D, s)
        G = (s * B @ D @ A @ X - Y) @ X.T / N
        found = gauge_drift(B, A, G, mask, rescale=1.5, scaling=0.7)
        flow = sgd_gauge_step(B, A, *grads, learning_rate=1.0).first_order
        deviation(
            "T13: dC_ij/dt = s (d_i - d_j)(M_ij - M_ji)", gauge_drift, worst(found, flow), 1e-12
        )


@pytest.mark.parametrize("q", [0.3, 0.5, 0.8])
@pytest.mark.parametrize("granularity", ["step", "token"])
def test_expected_drift_by_enumeration(q, granularity, deviation):
    B, A, X, Y = problem(3)
    masks = all_masks(R if granularity == "step" else R * N)
    weights = mask_probabilities(masks, keep_prob=q)
    P = diagonals(masks if granularity == "step" else masks.reshape(-1, N, R))
    s = 0.7 / q
    grads = torch.func.vmap(gradients, (None, None, None, None, 0, None))(B, A, X, Y, P, s)
    mean = [torch.einsum("k,k...->...", weights, g) for g in grads]
    flow = sgd_gauge_step(B, A, *mean, learning_rate=1.0).first_order
    found = expected_gauge_drift(
        B, A, second_moment=X @ X.T / N, keep_prob=q, rescale=1 / q, scaling=0.7
    )
    deviation(
        f"T13: expected drift of the gauge, per-{granularity} masks",
        expected_gauge_drift,
        worst(found, flow) / flow.abs().max(),
        1e-12,
    )


def test_drift_of_identity_inputs_is_the_default():
    B, A, _, _ = problem(4)
    law = {"keep_prob": 0.5, "rescale": 2.0}
    explicit = expected_gauge_drift(B, A, second_moment=torch.eye(WIDTH).double(), **law)
    assert torch.equal(expected_gauge_drift(B, A, **law), explicit)


def sphere_projectors(kept):
    """Rank-1 projectors of R^3 (or their complements) on a quadrature exact to degree 5."""
    height, weight = np.polynomial.legendre.leggauss(4)
    azimuth = 2 * math.pi * np.arange(8) / 8
    z, phi = (torch.from_numpy(x.ravel()) for x in np.meshgrid(height, azimuth, indexing="ij"))
    ring = (1 - z**2).sqrt()
    v = torch.stack([ring * phi.cos(), ring * phi.sin(), z], -1)
    P = v[:, :, None] * v[:, None, :]
    weights = torch.from_numpy(np.repeat(weight / 2 / 8, 8))
    return (P if kept == 1 else torch.eye(3).double() - P), weights


@pytest.mark.parametrize("kept", [1, 2])
def test_haar_rotated_masks_by_exact_quadrature(kept, deviation):
    B, A, X, Y = problem(5)
    P, weights = sphere_projectors(kept)
    Sigma = X @ X.T / N
    fourth = torch.einsum("x,xij,xkl->ijkl", weights, P, P)
    a, b = haar_moments(R, kept=kept)
    eye = torch.eye(R).double()
    expected = a * torch.einsum("ij,kl->ijkl", eye, eye)
    expected += b * torch.einsum("ik,jl->ijkl", eye, eye) + b * torch.einsum(
        "il,jk->ijkl", eye, eye
    )
    deviation(
        "T13: second moment of a Haar projector", haar_moments, worst(fourth, expected), 1e-14
    )
    energy = torch.einsum("x,xij,jk,xkl,li->", weights, P, A @ Sigma @ A.T, P, B.T @ B)
    deviation(
        "T13: E tr(P H_B P H_A) = (a+b) tr(H_B H_A) + b tr H_B tr H_A",
        haar_energy,
        abs(haar_energy(B, A, kept=kept, second_moment=Sigma) / energy - 1),
        1e-13,
    )
    s = R / kept
    grads = torch.func.vmap(gradients, (None, None, None, None, 0, None))(B, A, X, Y, P, s)
    mean = [torch.einsum("k,k...->...", weights, g) for g in grads]
    flow = sgd_gauge_step(B, A, *mean, learning_rate=1.0).first_order
    found = expected_haar_gauge_drift(B, A, kept=kept, rescale=s, second_moment=Sigma)
    deviation(
        "T13: expected gauge drift of Haar-rotated masks",
        expected_haar_gauge_drift,
        worst(found, flow) / flow.abs().max(),
        1e-12,
    )


def test_haar_moments_at_higher_rank(deviation):
    draws, rank, kept = 20_000, 5, 2
    draw = torch.Generator().manual_seed(0)
    Q = torch.linalg.qr(torch.randn(draws, rank, kept, dtype=torch.float64, generator=draw))[0]
    P = Q @ Q.mT
    a, b = haar_moments(rank, kept=kept)
    errors = []
    for sample, expected in [
        (P[:, 0, 1] ** 2, b),
        (P[:, 0, 0] * P[:, 1, 1], a),
        (P[:, 0, 0] ** 2, a + 2 * b),
    ]:
        errors.append(abs(sample.mean() - expected) / (sample.std() / draws**0.5))
    deviation(
        "T13: second moment of a Haar projector, r = 5, in standard errors (Monte Carlo)",
        haar_moments,
        max(errors),
        4,
    )


def test_haar_penalty_reaches_the_nuclear_norm_in_the_balanced_gauge(deviation):
    B, A, _, _ = problem(6)
    U, S, Vh = torch.linalg.svd(B @ A, full_matrices=False)
    root = S[:R].sqrt()
    balanced = haar_energy(U[:, :R] * root, root[:, None] * Vh[:R], kept=1)
    a, b = haar_moments(R, kept=1)
    expected = (a + b) * (S**2).sum() + b * S.sum() ** 2
    deviation(
        "T13: Haar penalty b ||.||_*^2 in the balanced gauge",
        haar_energy,
        abs(balanced - expected),
        1e-11,
    )
    assert haar_energy(B, A, kept=1) > balanced
    drift = expected_haar_gauge_drift(U[:, :R] * root, root[:, None] * Vh[:R], kept=1, rescale=3.0)
    assert drift.abs().max() < 1e-12


def test_refuses_impossible_projectors():
    with pytest.raises(ValueError, match="kept 4"):
        haar_moments(3, kept=4)


def test_balance_slope_is_1_for_kept_pairs_of_a_masked_sgd_step(deviation):
    B, A, X, Y = problem()
    P = torch.diag(torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64))
    grad_B, grad_A = gradients(B, A, X, Y, P, 2.0)
    kept = torch.outer(P.diagonal(), P.diagonal()) > 0
    slope = balance_slope((grad_A @ A.mT)[kept], (B.mT @ grad_B)[kept])
    deviation("T13: slope of B^T dB on dA A^T, kept pairs", balance_slope, abs(slope - 1), 1e-13)
