"""Principal vectors are biorthogonal to rounding, small and large angles alike."""

from __future__ import annotations

import math

import pytest
import torch

from subspace_lab.linalg import principal_angles, principal_vectors, random_subspace


@pytest.mark.parametrize(
    ("theta", "extra"),
    [
        ([1e-9, 1e-8, 1e-7, 1.0], 0),
        ([1e-9, 1e-6, 1e-4, 0.5, 1.2, math.pi / 2 - 1e-5, math.pi / 2 - 1e-9], 0),
        ([0.0, 0.0, math.pi / 4, math.pi / 4, math.pi / 2, math.pi / 2], 0),
        ([1e-3, 1.0], 3),
        ([0.2, 0.3], 1),
        ([1.2, 1.3], 2),
    ],
)
def test_biorthogonality(theta, extra):
    angle, q = torch.tensor(theta, dtype=torch.float64), len(theta)
    frame = random_subspace(30, 2 * q + extra)
    X = frame[:, :q] @ torch.randn(q, q, dtype=torch.float64)
    Y = frame[:, :q] * angle.cos() + frame[:, q : 2 * q] * angle.sin()
    Y = torch.cat([Y, frame[:, 2 * q :]], dim=1) @ random_subspace(q + extra, q + extra)
    for first, second in ((X, Y), (Y, X)):
        pair = principal_vectors(first, second)
        eye = torch.eye(q, dtype=torch.float64)
        torch.testing.assert_close(pair.angles, angle, rtol=0, atol=1e-13)
        for product, expected in [
            (pair.X.T @ pair.X, eye),
            (pair.Y.T @ pair.Y, eye),
            (pair.X.T @ pair.Y, angle.cos().diag()),
        ]:
            torch.testing.assert_close(product, expected, rtol=0, atol=1e-13)
        assert principal_angles(pair.X, first).max() < 1e-12
        # The vectors are as close as their angles say, which cosines cannot tell.
        gaps = (pair.X - pair.Y).norm(dim=0)
        torch.testing.assert_close(gaps, 2 * (angle / 2).sin(), rtol=1e-5, atol=1e-14)


def test_dependent_columns_are_refused():
    with pytest.raises(ValueError, match="independent columns"):
        principal_vectors(torch.ones(5, 2), torch.randn(5, 2))
