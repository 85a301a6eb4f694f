"""Distances and overlaps against projectors."""

from __future__ import annotations

import pytest
import torch

from subspace_lab.linalg import (
    chordal_distance,
    geodesic_distance,
    grassmann_overlap,
    masked_angles,
    overlap,
    pairwise_overlap,
    principal_angles,
    random_subspace,
)


def test_chordal_distance_is_that_of_projectors():
    X, Y = random_subspace(15, 4), random_subspace(15, 4)
    gap = (X @ X.T - Y @ Y.T).norm() / 2**0.5
    torch.testing.assert_close(chordal_distance(principal_angles(X, Y)), gap)


def test_geodesic_distance_is_the_length_of_the_geodesic():
    """exp(t H) X moves with unit speed |angles|: halfway is half the distance."""
    angle = torch.tensor([0.3, 0.8], dtype=torch.float64)
    frame = random_subspace(9, 4)
    start, half, end = (
        frame[:, :2] * (t * angle).cos() + frame[:, 2:] * (t * angle).sin() for t in (0, 0.5, 1)
    )
    whole = geodesic_distance(principal_angles(start, end))
    torch.testing.assert_close(whole, angle.norm())
    torch.testing.assert_close(geodesic_distance(principal_angles(start, half)), whole / 2)


def test_padding_does_not_count():
    padded = torch.tensor([0.0, 0.4, torch.nan])
    assert chordal_distance(padded) == chordal_distance(padded[:2])
    assert geodesic_distance(padded) == geodesic_distance(padded[:2])


def test_overlap_of_all_leading_parts():
    X, Y = torch.randn(20, 5, dtype=torch.float64), torch.randn(20, 3, dtype=torch.float64)
    U, V = torch.linalg.qr(X).Q, torch.linalg.qr(Y).Q
    phi = grassmann_overlap(U, V)
    for i in range(1, 6):
        for j in range(1, 4):
            brute = (U[:, :i].T @ V[:, :j]).norm() ** 2 / min(i, j)
            torch.testing.assert_close(phi[i - 1, j - 1], brute)
            torch.testing.assert_close(overlap(X[:, :i], Y[:, :j]), brute)


def test_columns_that_are_not_orthonormal_are_refused():
    with pytest.raises(ValueError, match="columns of V"):
        grassmann_overlap(torch.eye(4)[:, :2], torch.ones(4, 2))


@pytest.mark.parametrize("rank", [6, 4])
def test_all_pairs_of_masks(rank):
    frame = torch.randn(30, rank, dtype=torch.float64)
    frame = torch.cat([frame, frame[:, : 6 - rank]], dim=1)
    masks = torch.rand(40, 6) < 0.4
    masks[0] = False
    angles = masked_angles(frame, masks[:, None], masks).angles
    expected = angles.cos().square().nanmean(-1)
    phi = pairwise_overlap(frame, masks)
    torch.testing.assert_close(phi, expected, rtol=0, atol=1e-13, equal_nan=True)
    assert torch.isnan(phi[0]).all()
