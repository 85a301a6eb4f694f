import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from scipy.linalg import hadamard

from subspace_lab.theory.deep_linear import (
    aligned_strength,
    equalization_rate,
    lotka_volterra_field,
    lotka_volterra_flow,
    typical_growth_exponent,
)
from subspace_lab.theory.enumeration import all_masks, mask_probabilities
from subspace_lab.theory.shrinkage import dropout_spectrum

WIDTH = 4
LAWS = [(0.5, 2.0), (0.8, 1.25), (0.5, 1.0)]
rng = np.random.default_rng(0)
U, V = (np.linalg.qr(rng.standard_normal((WIDTH, WIDTH)))[0] for _ in range(2))


def target(sigma):
    return U[:, : len(sigma)] * sigma @ V[:, : len(sigma)].T


def factors(u, Q):
    """B = U diag(sqrt u) Q, A = Q^T diag(sqrt u) V^T for Q (modes, r)."""
    root = np.sqrt(u)
    return U[:, : len(u)] * root @ Q, Q.T * root @ V[:, : len(u)].T


def expected_gradients(B, A, M, keep_prob, rescale):
    """Mean over all masks of the gradients of (1/2)||M - s B D A||^2."""
    masks = all_masks(A.shape[0]).double().numpy()
    weights = mask_probabilities(all_masks(A.shape[0]), keep_prob=keep_prob).numpy()
    BD, DA = rescale * B * masks[:, None], rescale * masks[:, :, None] * A
    residual = M - BD @ A
    grad_B = -np.einsum("k,kmn,krn->mr", weights, residual, DA)
    grad_A = -np.einsum("k,kmr,kmn->rn", weights, BD, residual)
    return grad_B, grad_A


def matrix_flow(time, B, A, M, **law):
    """Gradient flow of the expected loss on the whole matrices: B A at each time."""
    shape, size = (B.shape, A.shape), B.size

    def field(_, x):
        grad_B, grad_A = expected_gradients(
            x[:size].reshape(shape[0]), x[size:].reshape(shape[1]), M, **law
        )
        return -np.concatenate([grad_B.ravel(), grad_A.ravel()])

    x = np.concatenate([B.ravel(), A.ravel()])
    y = solve_ivp(field, (0, time[-1]), x, t_eval=time, method="DOP853", rtol=1e-9, atol=1e-12).y.T
    return np.stack([row[:size].reshape(shape[0]) @ row[size:].reshape(shape[1]) for row in y])


@pytest.mark.parametrize(("q", "s"), LAWS)
def test_aligned_manifold_is_logistic(q, s, deviation):
    sigma, u0, time = np.array([3.0, 1.0]), np.array([0.01, 0.02]), np.linspace(0, 4, 9)
    B, A = factors(u0, np.eye(2))
    flow = matrix_flow(time, B, A, target(sigma), keep_prob=q, rescale=s)
    strengths = [
        aligned_strength(time, target=x, start=y, keep_prob=q, rescale=s)
        for x, y in zip(sigma, u0, strict=True)
    ]
    predicted = np.stack([target(u) for u in np.stack(strengths, 1)])
    deviation(
        "T14: aligned manifold, logistic singular values against the matrix flow",
        aligned_strength,
        np.abs(flow - predicted).max(),
        1e-6,
    )
    late = aligned_strength(np.array([50.0]), target=3.0, start=0.01, keep_prob=q, rescale=s)
    deviation("T14: aligned limit sigma / s", aligned_strength, abs(late[0] - 3.0 / s), 1e-12)


@pytest.mark.parametrize(("q", "s"), LAWS)
def test_equalised_manifold_is_lotka_volterra(q, s, deviation):
    r, sigma, u0 = 4, np.array([3.0, 2.0, 0.4]), np.array([0.02, 0.01, 0.03])
    law = {"keep_prob": q, "rescale": s}
    Q = hadamard(r)[:3] / r**0.5
    B, A = factors(u0, Q)
    M, time = target(sigma), np.linspace(0, 4, 9)
    grad_B, grad_A = expected_gradients(B, A, M, **law)
    velocity = lotka_volterra_field(u0, targets=sigma, rank=r, **law)
    deviation(
        "T14: Lotka-Volterra velocity = the matrix flow's, tangent to the manifold",
        lotka_volterra_field,
        np.abs(-grad_B @ A - B @ grad_A - target(velocity)).max(),
        1e-14,
    )
    flow = matrix_flow(time, B, A, M, **law)
    predicted = lotka_volterra_flow(time, start=u0, targets=sigma, rank=r, **law)
    deviation(
        "T14: Lotka-Volterra flow against the matrix flow (invariance)",
        lotka_volterra_flow,
        np.abs(flow - np.stack([target(u) for u in predicted])).max(),
        1e-6,
    )


@pytest.mark.parametrize(("q", "s"), LAWS)
def test_limit_is_the_soft_threshold(q, s, deviation):
    r, sigma = 4, np.array([3.0, 2.0, 0.4])
    late = lotka_volterra_flow(
        np.array([200.0]), start=np.full(3, 0.01), targets=sigma, rank=r, keep_prob=q, rescale=s
    )[0]
    limit = dropout_spectrum(torch.from_numpy(sigma), rank=r, keep_prob=q)
    deviation(
        "T14: Lotka-Volterra limit = soft threshold of T8",
        lotka_volterra_flow,
        np.abs(s * q * late - limit.spectrum.numpy()).max(),
        1e-8,
    )
    assert (limit.spectrum[2] == 0) == (q == 0.5)  # the weak mode dies at q = 1/2


@pytest.mark.parametrize(("q", "s"), LAWS)
def test_equalization_rate_is_the_unstable_eigenvalue(q, s, deviation):
    sigma = np.array([3.0, 1.0])
    u = sigma / s
    M = torch.from_numpy(np.diag(sigma))

    def loss(x):
        B, A = x.reshape(2, 2, 2)
        variance = s**2 * q * (1 - q) * (B.square().sum(0) * A.square().sum(1)).sum()
        return ((M - s * q * B @ A).square().sum() + variance) / 2

    root = torch.from_numpy(np.diag(np.sqrt(u)))
    point = torch.stack([root, root]).flatten()
    assert torch.func.grad(loss)(point).abs().max() < 1e-14  # a fixed point
    unstable = torch.linalg.eigvalsh(-torch.func.hessian(loss)(point))
    found = equalization_rate(u[0].item(), u[1].item(), keep_prob=q, rescale=s)
    deviation(
        "T14: equalisation rate = unstable eigenvalue of the aligned fixed point",
        equalization_rate,
        abs(found - unstable[-1].item()),
        1e-12,
    )
    assert (unstable > 1e-9).sum() == 1
    lam, total, delta = (1 - q) / q, s * q * u.sum(), s * q * (u[0] - u[1])
    assert found >= s * q * lam * delta**2 / total


def masked_sgd(B, A, M, *, learning_rate, steps, keep_prob, rescale, runs):
    """SGD on (1/2)||M - s B D A||^2 with a new mask every step; final B A of each run."""
    draws = np.random.default_rng(1)
    B, A = (np.repeat(x[None], runs, 0) for x in (B, A))
    for _ in range(steps):
        d = rescale * (draws.random((runs, A.shape[1])) < keep_prob)
        BD = B * d[:, None]
        residual = learning_rate * (M - BD @ A)
        B, A = B + residual @ A.mT * d[:, None], A + BD.mT @ residual
    return B @ A


@pytest.mark.parametrize("gauge", ["aligned", "equalised"])
def test_masked_sgd_follows_the_flow(gauge, deviation):
    eta, steps, q, s = 4e-4, 4000, 0.5, 2.0
    sigma, u0 = np.array([3.0, 2.0]), np.array([0.05, 0.05])
    Q = np.eye(2) if gauge == "aligned" else hadamard(4)[:2] / 2
    B, A = factors(u0, Q)
    found = masked_sgd(
        B, A, target(sigma), learning_rate=eta, steps=steps, keep_prob=q, rescale=s, runs=64
    ).mean(0)
    time = np.array([eta * steps])
    if gauge == "aligned":
        function = aligned_strength
        u = [
            function(time, target=x, start=0.05, keep_prob=q, rescale=s)[0] for x in sigma.tolist()
        ]
    else:
        function = lotka_volterra_flow
        u = function(time, start=u0, targets=sigma, rank=4, keep_prob=q, rescale=s)[0]
    deviation(
        f"T14: mean of 64 runs of masked SGD against the {gauge} flow, relative (simulation)",
        function,
        np.abs(found - target(np.array(u))).max() / max(u),
        1e-2,
    )


@pytest.mark.parametrize(("q", "s"), LAWS)
def test_typical_growth_of_masked_sgd(q, s, deviation):
    sigma, eta, steps, runs = 2.0, 0.1, 200, 400
    start = 1e-150  # so that s^2 u stays small against sigma
    B, A = factors(np.array([start]), np.eye(1))
    found = masked_sgd(
        B,
        A,
        target(np.array([sigma])),
        learning_rate=eta,
        steps=steps,
        keep_prob=q,
        rescale=s,
        runs=runs,
    )
    growth = np.log(np.linalg.norm(found, axis=(1, 2)) / start) / 2 / steps
    predicted = typical_growth_exponent(eta * sigma, keep_prob=q, rescale=s)
    deviation(
        "T14: typical growth exponent q log(1 + s gain), in standard errors (simulation)",
        typical_growth_exponent,
        abs(growth.mean() - predicted) / (growth.std() / runs**0.5),
        4,
    )


def test_drag_of_a_large_learning_rate(deviation):
    gain, q = 1e-3, 0.4
    drag = np.log1p(gain) - typical_growth_exponent(gain, keep_prob=q, rescale=1 / q)
    deviation(
        "T14: drag = gain^2 (1-q) / (2q) for a small gain, relative",
        typical_growth_exponent,
        abs(drag / (gain**2 * (1 - q) / (2 * q)) - 1),
        5e-3,
    )
