import pytest
import torch

from subspace_lab.linalg import principal_angles
from subspace_lab.theory.enumeration import all_masks, mask_probabilities
from subspace_lab.theory.reachable import (
    expected_kernel,
    frame_drift,
    masked_step,
    reachable_rank,
    step_rank,
    tangent_dimension,
)

M, R, WIDTH = 6, 3, 5


def problem(seed=0, r=R):
    draw = torch.Generator().manual_seed(seed)
    shapes = [(M, WIDTH), (M, r), (r, WIDTH)]
    return [torch.randn(shape, dtype=torch.float64, generator=draw) for shape in shapes]


def tangents(B, A, mask):
    """Jacobian of B D A with respect to all entries of B and A, (m n, r (m + n))."""
    D = torch.diag(mask.double())
    parts = torch.func.jacrev(lambda B, A: B @ D @ A, argnums=(0, 1))(B, A)
    return torch.cat([part.reshape(M * WIDTH, -1) for part in parts], 1)


def test_tangent_dimension_is_the_rank_of_the_jacobian(deviation):
    _, B, A = problem()
    for mask in all_masks(R):
        found = torch.linalg.matrix_rank(tangents(B, A, mask)).item()
        expected = tangent_dimension(M, WIDTH, masks=mask)
        deviation(
            "T15: masked tangent space has k(m+n-k)", tangent_dimension, abs(found - expected), 0
        )
    for masks in [all_masks(R)[[1, 2]], all_masks(R)[[3, 6]], all_masks(R)[[1, 1]], all_masks(R)]:
        joint = torch.cat([tangents(B, A, mask) for mask in masks], 1)
        found = torch.linalg.matrix_rank(joint).item()
        expected = tangent_dimension(M, WIDTH, masks=masks)
        deviation(
            "T15: masks together reach LoRA's tangent space of what they cover",
            tangent_dimension,
            abs(found - expected),
            0,
        )
    assert tangent_dimension(M, WIDTH, masks=all_masks(R)) == R * (M + WIDTH - R)
    at_zero = torch.linalg.matrix_rank(tangents(0 * B, A, torch.ones(R))).item()
    deviation("T15: tangent space at B = 0 has r m", tangent_dimension, abs(at_zero - R * M), 0)


def linear_loss(G, B, A, D):
    """A loss whose gradient with respect to the update B D A is G."""
    return (G * (B @ D @ A)).sum()


@pytest.mark.parametrize("rescaled", [True, False])
def test_masked_step_is_exact(rescaled, deviation):
    G, B, A = problem(1)
    eta, s, gamma = 0.1, 2.0 if rescaled else 1.0, 0.7
    for mask in all_masks(R):
        D = torch.diag(mask.double())
        grad_B, grad_A = torch.func.grad(linear_loss, argnums=(1, 2))(G, B, A, gamma * s * D)
        moved = gamma * ((B - eta * grad_B) @ (A - eta * grad_A) - B @ A)
        step = masked_step(G, B, A, mask, learning_rate=eta, rescale=s, scaling=gamma)
        whole = step.first_order + step.second_order
        deviation(
            "T15: change of dW in one masked SGD step",
            masked_step,
            (whole - moved).abs().max(),
            1e-13,
        )
        kernel = -eta * gamma**2 * s * (G @ A.T @ D @ A + B @ D @ B.T @ G)
        deviation(
            "T15: first order -eta s [G A^T D A + B D B^T G]",
            masked_step,
            (step.first_order - kernel).abs().max(),
            1e-13,
        )


def test_step_ranks(deviation):
    G, B, A = problem(2)
    law = {"learning_rate": 0.1, "rescale": 2.0}
    for mask in all_masks(R):
        kept = int(mask.sum())
        whole, start = masked_step(G, B, A, mask, **law), masked_step(G, 0 * B, A, mask, **law)
        found = torch.linalg.matrix_rank(whole.first_order + whole.second_order).item()
        expected = step_rank(M, WIDTH, kept=kept)
        deviation("T15: a step has rank 2|M|", step_rank, abs(found - expected), 0)
        found = torch.linalg.matrix_rank(start.first_order + start.second_order).item()
        expected = step_rank(M, WIDTH, kept=kept, zero_B=True)
        deviation("T15: a step from B = 0 has rank |M|", step_rank, abs(found - expected), 0)


def test_first_order_lies_in_the_frames(deviation):
    G, B, A = problem(3)
    step = masked_step(G, B, A, torch.tensor([True, False, True]), learning_rate=0.1, rescale=2.0)
    outside = [torch.eye(len(X)).double() - X @ torch.linalg.pinv(X) for X in (B, A.T)]
    deviation(
        "T15: first order has its rows in row(A) or its columns in col(B)",
        masked_step,
        (outside[0] @ step.first_order @ outside[1]).abs().max(),
        1e-14,
    )


@pytest.mark.parametrize("q", [0.3, 0.5])
def test_expected_kernel_by_enumeration(q, deviation):
    G, B, A = problem(4)
    weights = mask_probabilities(all_masks(R), keep_prob=q)
    for s in [1.0, 1 / q]:
        law = {"rescale": s, "scaling": 0.7}
        steps = [masked_step(G, B, A, d, learning_rate=1.0, **law) for d in all_masks(R)]
        mean = torch.einsum("k,kmn->mn", weights, torch.stack([x.first_order for x in steps]))
        found = expected_kernel(G, B, A, keep_prob=q, **law)
        lora = masked_step(
            G, B, A, torch.ones(R, dtype=torch.bool), learning_rate=1.0, rescale=1.0, scaling=0.7
        )
        deviation(
            "T15: mean masked kernel = s q LoRA's kernel",
            expected_kernel,
            max((found + mean).abs().max(), (found + s * q * lora.first_order).abs().max()),
            1e-13,
        )


def test_frame_drift_is_the_sine_of_the_angles(deviation):
    E, _, A = problem(5)
    E = E[:R]
    angles = principal_angles(A.T, (A + E).T)
    deviation(
        "T15: frame drift = sines of the principal angles",
        frame_drift,
        (frame_drift(A, E) - angles.flip(-1).sin()).abs().max(),
        1e-13,
    )
    Q = torch.linalg.qr(A.T)[0]
    P = Q @ Q.T
    gram = (A + E) @ (A + E).T
    values, vectors = torch.linalg.eigh(gram)
    root = vectors @ torch.diag(values.rsqrt()) @ vectors.T
    identity = torch.linalg.svdvals((torch.eye(WIDTH).double() - P) @ E.T @ root)
    deviation(
        "T15: sin = singular values of (I - P_A) E^T (A' A'^T)^{-1/2}",
        frame_drift,
        (frame_drift(A, E) - identity).abs().max(),
        1e-13,
    )


def test_frame_drift_keeps_its_digits_for_tiny_steps(deviation):
    """A rotation by known angles, down to 1e-12."""
    draw = torch.Generator().manual_seed(6)
    Q = torch.linalg.qr(torch.randn(8, 8, dtype=torch.float64, generator=draw))[0]
    theta = torch.tensor([1e-3, 1e-8, 1e-12], dtype=torch.float64)
    frame, normal = Q[:, :3].T, Q[:, 3:6].T
    # E = A' - A with A' = cos A + sin N, written without subtracting nearly equal numbers.
    E = -2 * (theta / 2).sin().square()[:, None] * frame + theta.sin()[:, None] * normal
    found = frame_drift(frame, E)
    deviation(
        "T15: frame drift of tiny steps, relative",
        frame_drift,
        (found / theta.sin() - 1).abs().max(),
        1e-8,
    )


@pytest.mark.parametrize("kept", [0, 1, 2])
def test_sgd_with_a_step_mask_turns_at_most_kept_angles(kept, deviation):
    E, _, A = problem(7)
    E = E[:R].clone()
    E[kept:] = 0
    found = frame_drift(A, E)
    deviation(
        "T15: at most |M| non-zero frame angles under a step mask",
        frame_drift,
        found[kept:].max(),
        1e-15,
    )
    assert (found[:kept] > 1e-3).all()


def test_frame_drift_refuses_a_degenerate_frame():
    E, _, A = problem(8)
    A[1] = A[0]
    with pytest.raises(ValueError, match="rows of A are linearly dependent"):
        frame_drift(A, E[:R])


def test_refreshed_frames_accumulate_rank(deviation):
    draw = torch.Generator().manual_seed(9)
    total = torch.zeros(M, WIDTH, dtype=torch.float64)
    for refreshes in range(1, 5):
        B, A = (torch.randn(x, dtype=torch.float64, generator=draw) for x in [(M, 2), (2, WIDTH)])
        total = total + B @ A
        found = torch.linalg.matrix_rank(total).item()
        expected = reachable_rank(M, WIDTH, rank=2, refreshes=refreshes)
        deviation(
            "T15: refreshed frames reach rank refreshes x k",
            reachable_rank,
            abs(found - expected),
            0,
        )


def test_masked_training_never_leaves_rank_r(deviation):
    target, B, A = problem(10)
    draw = torch.Generator().manual_seed(11)
    for _ in range(200):
        mask = torch.rand(R, generator=draw) < 0.5
        G = 2.0 * B @ torch.diag(mask.double()) @ A - target
        change_B, change_A = G @ (A * mask[:, None]).T, (B * mask).T @ G
        B, A = B - 0.02 * change_B, A - 0.02 * change_A
    found = torch.linalg.matrix_rank(B @ A).item()
    expected = reachable_rank(M, WIDTH, rank=R)
    deviation("T15: masks never raise the rank above r", reachable_rank, abs(found - expected), 0)
