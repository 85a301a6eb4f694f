"""Bases of dependent columns, and orthogonality where little is left."""

from __future__ import annotations

import pytest
import torch

from subspace_lab.linalg import random_subspace
from subspace_lab.linalg.bases import dependence_tolerance, orthonormal_basis, reject, unit_frame


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


def test_one_rule_for_well_ill_and_singular_frames_in_one_batch():
    """Whether or not the inverse settles it, independence is that of the singular values."""
    smallest = torch.tensor([1.0, 1e-3, 1e-5, 1e-7, 1e-10, 1e-12, 1e-14, 0.0], dtype=torch.float64)
    spectra = torch.cat([torch.ones(len(smallest), 5).double(), smallest[:, None]], dim=1)
    frames = random_subspace(9, 6, batch=(8,)) * spectra[:, None] @ random_subspace(6, 6)
    frames[-1, :, 0] = 0
    for X in (frames, torch.linalg.qr(frames).R):
        unit, independent = unit_frame(X)
        sigma = torch.linalg.svdvals(unit)
        assert independent.tolist() == (sigma[:, -1] > 1e-13 * sigma[:, 0]).tolist()
        assert independent.tolist() == [True] * 6 + [False] * 2
    assert not unit_frame(frames.mT)[1].any()
