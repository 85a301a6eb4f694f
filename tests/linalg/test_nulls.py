"""Closed forms of random subspaces and random masks against samples and against each other."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import binom

from subspace_lab.linalg import (
    jacobi_edge,
    masked_angles,
    null_overlap,
    principal_angles,
    random_angle_moments,
    random_subspace,
    triangular_factor,
)


def within_four_standard_errors(sample: torch.Tensor, expected: float) -> bool:
    return bool((sample.mean() - expected).abs() < 4 * sample.std() / math.sqrt(len(sample)))


def test_random_subspaces_are_orthonormal_and_reproducible():
    Q = random_subspace(9, 4, batch=(5, 2), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(Q.mT @ Q, torch.eye(4, dtype=torch.float64).expand(5, 2, 4, 4))
    assert torch.equal(
        Q, random_subspace(9, 4, batch=(5, 2), generator=torch.Generator().manual_seed(1))
    )
    # Haar on frames, not only on spaces: no preferred sign.
    diagonal = random_subspace(3, 1, batch=(4000,))[:, 0, 0]
    assert within_four_standard_errors(diagonal, 0)


@pytest.mark.parametrize(("n", "a", "b"), [(12, 1, 1), (12, 3, 5), (6, 4, 5), (3, 3, 2)])
def test_moments_of_random_angles(n, a, b):
    X, Y = random_subspace(n, a, batch=(4000,)), random_subspace(n, b, batch=(4000,))
    sample = (X.mT @ Y).square().sum((-2, -1))
    moments = random_angle_moments(n, a, b)
    if moments.variance == 0:
        torch.testing.assert_close(sample, torch.full_like(sample, moments.mean))
        return
    assert within_four_standard_errors(sample, moments.mean)
    assert within_four_standard_errors((sample - moments.mean).square(), moments.variance)


def test_one_dimensional_case_is_a_beta_law():
    """cos^2 ~ Beta(1/2, (n - 1)/2)."""
    n = 7
    moments = random_angle_moments(n, 1, 1)
    alpha, beta = 1 / 2, (n - 1) / 2
    assert moments.mean == pytest.approx(alpha / (alpha + beta))
    assert moments.variance == pytest.approx(
        alpha * beta / ((alpha + beta) ** 2 * (alpha + beta + 1))
    )


def test_shared_directions_of_a_gaussian_frame():
    frames = torch.randn(3000, 10, 5, dtype=torch.float64)
    x, y = torch.tensor([[1, 1, 1, 0, 0], [1, 0, 0, 1, 1]]).bool()
    sample = masked_angles(frames, x, y).angles.cos().square().nansum(-1)
    moments = random_angle_moments(10, 2, 2, shared=1)
    assert within_four_standard_errors(sample, moments.mean)
    assert within_four_standard_errors((sample - moments.mean).square(), moments.variance)


@pytest.mark.parametrize(("a", "b"), [(160, 160), (80, 240)])
def test_edge_of_the_bulk(a, b):
    """The largest cos^2 stays below the edge by a few percent: n^{-2/3}, with a constant."""
    n = 1600
    X, Y = random_subspace(n, a, batch=(3,)), random_subspace(n, b, batch=(3,))
    largest = principal_angles(X, Y)[:, 0].cos().square().mean()
    assert largest.item() == pytest.approx(jacobi_edge(n, a, b), rel=0.05)
    assert jacobi_edge(n, 900, 800) == 1


@pytest.mark.parametrize(("n", "r", "keep_prob"), [(64, 8, 0.3), (40, 16, 0.5), (32, 8, 0.9)])
def test_overlap_of_random_masks(n, r, keep_prob):
    null = null_overlap(n, binom.pmf(range(r + 1), r, keep_prob))
    q, s = keep_prob, keep_prob / (1 + keep_prob)
    direct = sum(
        binom.pmf(i, r, q * q) * (i + (r - i) * (r - i - 1) * s * s / (n - i)) for i in range(r + 1)
    )
    assert null.squared_cosines == pytest.approx(direct, rel=1e-12)
    frames = triangular_factor(torch.randn(3000, n, r, dtype=torch.float64))
    x, y = torch.rand(2, 3000, r) < q
    squares = masked_angles(frames, x, y).angles.cos().square()
    assert within_four_standard_errors(squares.nansum(-1), null.squared_cosines)
    assert within_four_standard_errors(squares.nanmean(-1)[x.any(-1) & y.any(-1)], null.phi)


def test_masks_that_keep_all_overlap_fully():
    assert null_overlap(100, np.eye(8)[7]).phi == pytest.approx(1)


@pytest.mark.parametrize(
    "call",
    [
        lambda: random_angle_moments(5, 6, 1),
        lambda: random_angle_moments(5, 3, 3, shared=3),
        lambda: null_overlap(4, np.full(6, 1 / 6)),
    ],
)
def test_impossible_dimensions(call):
    with pytest.raises(ValueError, match=r"R\^"):
        call()
