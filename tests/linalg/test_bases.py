"""Bases of dependent columns, and orthogonality where little is left."""

from __future__ import annotations

import math

import pytest
import torch

from subspace_lab.linalg import random_subspace
from subspace_lab.linalg.bases import (
    LEAST_VOLUME,
    dependence_tolerance,
    orthonormal_basis,
    reject,
    unit_frame,
)


def test_rejection_is_orthogonal_even_to_what_was_nearly_everything():
    frame = random_subspace(30, 6)
    Q, rest = frame[:, :4], frame[:, 4:]
    X = Q @ torch.randn(4, 2, dtype=torch.float64) + 1e-10 * rest
    left = reject(X, Q)
    assert (Q.T @ left).norm() < 1e-15 * left.norm()
    torch.testing.assert_close(left, 1e-10 * rest, rtol=0, atol=1e-15)


@pytest.mark.parametrize(("smallest", "rank"), [(1e-12, 5), (1e-14, 4)])
def test_rank_rule(smallest, rank):
    """Columns at unit length; singular values up to 1e-13 of the largest are zero."""
    spectrum = torch.tensor([1, 1, 1, 1, smallest], dtype=torch.float64)
    X = random_subspace(20, 5) * spectrum @ random_subspace(5, 5)
    frame, full = unit_frame(X)
    basis, found = orthonormal_basis(frame, dependence_tolerance(frame))
    assert found == rank
    assert full == (rank == 5)
    expected = torch.cat([torch.ones(rank), torch.zeros(5 - rank)]).double().diag()
    torch.testing.assert_close(basis.T @ basis, expected)


def test_short_columns_are_not_dependent():
    lengths = torch.tensor([1.0, 1e-20, 1e-100], dtype=torch.float64)
    assert unit_frame(torch.randn(10, 3, dtype=torch.float64) * lengths)[1]


@pytest.mark.parametrize("weak", [1, 3])
def test_one_rule_for_well_ill_and_singular_frames_in_one_batch(weak):
    """Whichever bound settles it, independence is that of the singular values.

    One weak direction of 1e-3 leaves a large volume; three of 1e-5 leave a small volume and a
    moderate condition number; the smallest leave neither.
    """
    smallest = torch.tensor([1.0, 1e-3, 1e-5, 1e-7, 1e-10, 1e-12, 1e-14, 0.0], dtype=torch.float64)
    spectra = torch.ones(len(smallest), 6, dtype=torch.float64)
    spectra[:, -weak:] = smallest[:, None]
    frames = random_subspace(9, 6, batch=(8,)) * spectra[:, None] @ random_subspace(6, 6)
    frames[-1, :, 0] = 0
    for X in (frames, torch.linalg.qr(frames).R):
        unit, independent = unit_frame(X)
        sigma = torch.linalg.svdvals(unit)
        assert independent.tolist() == (sigma[:, -1] > 1e-13 * sigma[:, 0]).tolist()
        assert independent.tolist() == [True] * 6 + [False] * 2
    assert not unit_frame(frames.mT)[1].any()


def test_volume_bounds_the_smallest_singular_value_of_nearly_dependent_frames():
    """sigma_k > |det R| / sqrt(e): the reason why a large volume proves independence."""
    spread = torch.logspace(0, -8, 200, dtype=torch.float64)[:, None, None]
    common = torch.randn(200, 9, 1, dtype=torch.float64)
    unit, independent = unit_frame(common + spread * torch.randn(200, 9, 5, dtype=torch.float64))
    volume = torch.linalg.qr(unit).R.diagonal(dim1=-2, dim2=-1).prod(-1).abs()
    assert (torch.linalg.svdvals(unit)[:, -1] > volume / math.e**0.5).all()
    assert independent.all() and volume.min() < LEAST_VOLUME < volume.max()
