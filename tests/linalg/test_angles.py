"""Principal angles against 50 digits, SciPy, partial canonical correlations and all masks."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import subspace_angles

from subspace_lab.linalg import (
    masked_angles,
    principal_angles,
    random_subspace,
    triangular_factor,
)
from subspace_lab.linalg.angles import CHUNK

MIXED = [0.0, 1e-10, 1e-8, 1e-5, 1e-2, 1.0, math.pi / 2 - 1e-9, math.pi / 2]
seeds = st.integers(0, 2**31)


def planted(theta: list[float], n: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    """Orthonormal X and Y whose principal angles are theta, each in a basis of its own."""
    angle = torch.tensor(theta, dtype=torch.float64)
    q = len(theta)
    frame = random_subspace(n, 2 * q)
    X, Y = frame[:, :q], frame[:, :q] * angle.cos() + frame[:, q:] * angle.sin()
    return X @ random_subspace(q, q), Y @ random_subspace(q, q)


def all_masks(r: int) -> torch.Tensor:
    return torch.cartesian_prod(*[torch.tensor([False, True])] * r)


def test_small_and_large_angles_together(exact_angles):
    X, Y = planted(MIXED)
    theta = principal_angles(X, Y)
    assert (theta - torch.tensor(MIXED, dtype=torch.float64)).abs().max() < 2e-15
    # Without the rounding of the bases that were planted: their entries as exact numbers.
    assert (theta - exact_angles(X, Y)).abs().max() < 2e-15
    assert abs(theta[1] / 1e-10 - 1) < 1e-5


@pytest.mark.parametrize("condition", [1e2, 1e6])
def test_ill_conditioned_columns(condition, exact_angles):
    X, Y = planted([1e-10, 1e-3, 1.5])
    scale = torch.logspace(0, -math.log10(condition), 3, dtype=torch.float64)
    X, Y = (Q * scale @ random_subspace(3, 3) for Q in (X, Y))
    error = principal_angles(X, Y) - exact_angles(X, Y)
    assert error.abs().max() < 3e-16 * condition


@pytest.mark.parametrize(("k", "l"), [(3, 5), (5, 3), (1, 1), (4, 4)])
@pytest.mark.parametrize("n", [6, 30])
def test_scipy_on_angles_of_moderate_size(k, l, n):  # noqa: E741
    X, Y = torch.randn(n, k, dtype=torch.float64), torch.randn(n, l, dtype=torch.float64)
    true = torch.from_numpy(subspace_angles(X.numpy(), Y.numpy())[::-1].copy())
    assert (principal_angles(X, Y) - true).abs().max() < 1e-7
    if n == 30:
        assert (principal_angles(X, Y) - true).abs().max() < 1e-14


@pytest.mark.parametrize("zero_columns", [0, 1])
def test_dependent_columns_count_once(zero_columns, exact_angles):
    X, Y = torch.randn(20, 3, dtype=torch.float64), torch.randn(20, 2, dtype=torch.float64)
    combination = X @ torch.tensor([[1.0], [-2.0], [0.3]], dtype=torch.float64)
    dependent = torch.cat([X, combination, torch.zeros(20, zero_columns)], dim=1)
    theta = principal_angles(dependent, torch.cat([Y, Y], dim=1))
    assert torch.isnan(theta[2:]).all()
    assert (theta[:2] - exact_angles(X, Y)).abs().max() < 1e-14


def test_zero_space_has_no_angles():
    assert torch.isnan(principal_angles(torch.zeros(9, 2), torch.randn(9, 3))).all()
    result = masked_angles(torch.zeros(4, 4), torch.ones(4).bool(), torch.ones(4).bool())
    assert (result.rank_x, result.kept_x, result.shared) == (0, 4, 4)
    assert torch.isnan(result.angles).all()


def test_every_pair_of_masks():
    """All 256 pairs at r = 4: exact zeros, the other angles, the counts, the padding."""
    r = 4
    A = torch.randn(r, 50, dtype=torch.float64)
    R, masks = triangular_factor(A.T), all_masks(r)
    result = masked_angles(R, masks[:, None], masks)
    for s, x in enumerate(masks):
        for t, y in enumerate(masks):
            shared, count = int((x & y).sum()), int(min(x.sum(), y.sum()))
            theta = result.angles[s, t]
            assert result.shared[s, t] == shared
            assert (theta[:shared] == 0).all()
            assert torch.isnan(theta[count:]).all()
            if count > shared:
                true = principal_angles(A[x].T, A[y].T)[shared:]
                assert (theta[shared:count] - true).abs().max() < 1e-14
    assert torch.equal(result.kept_x, masks.sum(-1)[:, None].expand(16, 16))
    assert torch.equal(result.rank_y, masks.sum(-1).expand(16, 16))


def test_partial_canonical_correlations():
    """The angles of the residuals, from the Gram matrix: another route to the same numbers."""
    A = torch.randn(9, 40, dtype=torch.float64)
    shared, first, second = [0, 1, 2], [3, 4, 5, 6], [7, 8]
    G = A @ A.T
    schur = G - G[:, shared] @ torch.linalg.solve(G[shared][:, shared], G[shared])
    L1 = torch.linalg.cholesky(schur[first][:, first])
    L2 = torch.linalg.cholesky(schur[second][:, second])
    cosines = torch.linalg.svdvals(
        torch.linalg.solve(L1, torch.linalg.solve(L2, schur[second][:, first]).T)
    )
    index = torch.arange(9)
    x, y = (torch.isin(index, torch.tensor(shared + part)) for part in (first, second))
    theta = masked_angles(A.T, x, y).angles
    torch.testing.assert_close(theta[3:5].cos(), cosines, rtol=0, atol=1e-13)


def test_coordinate_frame_has_right_angles_only():
    masks = all_masks(3)
    result = masked_angles(torch.eye(3), masks[:, None], masks)
    right = (result.angles > 1).sum(-1)
    expected = torch.minimum(result.kept_x, result.kept_y) - result.shared
    assert torch.equal(right, expected)
    assert set(result.angles[result.angles.isfinite()].tolist()) == {0.0, math.pi / 2}


def test_two_frames():
    A, B = (torch.randn(50, 6, dtype=torch.float64) for _ in range(2))
    R = triangular_factor(torch.cat([A, B], dim=1))
    x, y = torch.rand(2, 30, 6) < 0.5
    result = masked_angles(R[:, :6], x, y, Y=R[:, 6:])
    assert (result.shared == 0).all()
    for t in range(30):
        if x[t].any() and y[t].any():
            true = principal_angles(A[:, x[t]], B[:, y[t]])
            assert (result.angles[t, : len(true)] - true).abs().max() < 1e-14


def test_one_step_of_a_frame():
    """A drift of 1e-9, between frames stacked without cancellation: angles are not rounded off."""
    A, D = torch.randn(50, 4, dtype=torch.float64), torch.randn(50, 4, dtype=torch.float64)
    kept = torch.ones(4, dtype=torch.bool)
    theta = masked_angles(A, kept, kept, Y=A + 1e-9 * D).angles
    first_order = 1e-9 * torch.linalg.svdvals(
        (D - A @ torch.linalg.lstsq(A, D).solution) @ torch.linalg.inv(triangular_factor(A))
    )
    torch.testing.assert_close(theta, first_order.flip(0), rtol=1e-5, atol=0)


def test_dependent_frame_agrees_with_its_independent_columns():
    A = torch.randn(30, 5, dtype=torch.float64)
    A[:, 3], A[:, 4] = A[:, 0] + A[:, 1], 0
    on = lambda *kept: torch.isin(torch.arange(5), torch.tensor(kept))  # noqa: E731
    # {0, 1, 3, 4} spans what {0, 1} spans, and {0, 3} as well.
    result = masked_angles(A, torch.stack([on(0, 1, 3, 4), on(0, 2)]), on(0, 3))
    assert result.rank_x.tolist() == [2, 2]
    assert result.kept_x.tolist() == [4, 2]
    assert result.angles[0, :2].max() < 1e-15
    true = principal_angles(A[:, [0, 2]], A[:, [0, 1]])
    torch.testing.assert_close(result.angles[1, :2], true, rtol=0, atol=1e-14)
    assert torch.isnan(result.angles[:, 2:]).all()


def test_independent_and_dependent_frames_in_one_batch():
    X = torch.randn(3, 6, 6, dtype=torch.float64)
    X[1, :, 2] = X[1, :, 4]
    masks = torch.rand(2, 3, 7, 6) < 0.6
    batch = masked_angles(X[:, None], *masks)
    for i in range(3):
        one = masked_angles(X[i], masks[0, i], masks[1, i])
        torch.testing.assert_close(batch.angles[i], one.angles, equal_nan=True, rtol=0, atol=1e-14)
        assert torch.equal(batch.rank_x[i], one.rank_x)


def test_more_pairs_than_a_chunk():
    R = triangular_factor(torch.randn(20, 5, dtype=torch.float64))
    masks = torch.rand(2 * CHUNK + 3, 5) < 0.5
    many = masked_angles(R, masks[:-1], masks[1:]).angles
    for t in (0, CHUNK, 2 * CHUNK + 1):
        one = masked_angles(R, masks[t], masks[t + 1]).angles
        torch.testing.assert_close(many[t], one, equal_nan=True, rtol=0, atol=1e-15)


@pytest.mark.parametrize(("near", "error"), [(1.0, 1e-14), (1e-6, 1e-9)])
def test_pairs_of_all_sizes_in_one_chunk(near, error, exact_angles):
    """Both orders of sizes, and pairs with and without a small angle (directions 0 and 7)."""
    frame = torch.randn(20, 8, dtype=torch.float64)
    frame[:, 7] = frame[:, 0] + near * frame[:, 7]
    x, y = torch.rand(2, 40, 8) < 0.5
    x[0], y[0] = torch.arange(8) < 1, torch.arange(8) > 6
    theta = masked_angles(frame, x, y).angles
    assert 0.1 * near < theta[0, 0] < 10 * near
    for t in range(40):
        shared, first, last = x[t] & y[t], x[t] & ~y[t], y[t] & ~x[t]
        if first.any() and last.any():
            Q = torch.linalg.qr(frame[:, shared]).Q
            true = exact_angles(
                *(frame[:, part] - Q @ (Q.T @ frame[:, part]) for part in (first, last))
            )
            found = theta[t, shared.sum() :][: len(true)]
            assert (found - true).abs().max() < error


@settings(max_examples=30, deadline=None)
@given(seed=seeds)
def test_invariances(seed):
    torch.manual_seed(seed)
    X, Y = (torch.randn(12, k, dtype=torch.float64) for k in (4, 3))
    theta = principal_angles(X, Y)
    Q = random_subspace(12, 12)
    for other in [
        principal_angles(Y, X),
        principal_angles(Q @ X, Q @ Y),
        principal_angles(X @ random_subspace(4, 4), 1e-6 * Y.flip(-1)),
    ]:
        torch.testing.assert_close(other, theta, rtol=0, atol=1e-12)


@settings(max_examples=30, deadline=None)
@given(seed=seeds)
def test_invariances_of_masked_angles(seed):
    torch.manual_seed(seed)
    X = torch.randn(12, 6, dtype=torch.float64)
    x, y = torch.rand(2, 6) < 0.5
    theta = masked_angles(X, x, y).angles
    order, lengths = torch.randperm(6), torch.rand(6, dtype=torch.float64) + 1e-3
    for other in [
        masked_angles(X, y, x),
        masked_angles(random_subspace(12, 12) @ X, x, y),
        masked_angles(X[:, order], x[order], y[order]),
        masked_angles(X * lengths, x, y),
    ]:
        torch.testing.assert_close(other.angles, theta, rtol=0, atol=1e-12, equal_nan=True)


@settings(max_examples=20, deadline=None)
@given(seed=seeds)
def test_gauge_moves_the_masked_subspaces(seed):
    """A -> G^{-1} A keeps the row space, and moves the row spaces of its masked parts."""
    torch.manual_seed(seed)
    A = torch.randn(4, 12, dtype=torch.float64)
    moved = torch.linalg.solve(
        torch.randn(4, 4, dtype=torch.float64) + 2 * torch.eye(4, dtype=torch.float64), A
    )
    kept, part = torch.ones(4).bool(), torch.tensor([True, True, False, False])
    assert masked_angles(A.T, kept, kept, Y=moved.T).angles.max() < 1e-10
    assert masked_angles(A.T, part, part, Y=moved.T).angles[:2].max() > 1e-3
