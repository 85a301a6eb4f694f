"""Rank cores: norms where B A is much smaller than B and A, against 50 digits; batches."""

from __future__ import annotations

import mpmath
import pytest
import torch

from subspace_lab.linalg.rank_core import Frame, RankCore, frame_core


def core(B: torch.Tensor, A: torch.Tensor, scaling: float = 1.0) -> RankCore:
    row, column = (frame_core(X, X, X) for X in (A.T, B))
    return RankCore(row, column, torch.tensor(scaling, dtype=torch.float64))


def exact_norm(B: torch.Tensor, A: torch.Tensor) -> float:
    with mpmath.workdps(50):
        product = mpmath.matrix(B.tolist()) * mpmath.matrix(A.tolist())
        return float(mpmath.mnorm(product, "f"))


@pytest.mark.parametrize("size", [1e-3, 1e-6, 1e-8, 1e-9])
def test_norm_survives_cancellation(size):
    generator = torch.Generator().manual_seed(0)
    b, a, e = torch.randn(3, 20, dtype=torch.float64, generator=generator)
    B, A = torch.stack([b, -b], dim=1), torch.stack([a, a + size * e])
    norm = float(core(B, A, scaling=-2.0).norm())
    # A Gram trace is off by 1e-16 / size^2: by all of it from 1e-8 on.
    assert norm == pytest.approx(2 * exact_norm(B, A), rel=1e-14 / size)


def test_an_update_that_cancels_has_norm_and_spectrum_zero():
    generator = torch.Generator().manual_seed(0)
    B, A = (torch.randn(*shape, generator=generator) for shape in ((30, 4), (4, 20)))
    cancelled = core(torch.cat([B, -B], dim=1), torch.cat([A, A]))
    assert cancelled.norm() == 0
    assert not cancelled.singular_values().any()


def batch(*shape: int) -> RankCore:
    row, column = (frame_core(*torch.randn(3, *shape, n, 2, dtype=torch.float64)) for n in (9, 7))
    return RankCore(row, column, torch.rand(*shape, dtype=torch.float64))


def test_cat_and_stack_undo_indexing():
    cores = batch(3, 4)
    modules = RankCore.cat([cores[:, :1], cores[:, 1:]], dim=1)
    steps = RankCore.stack([cores[step] for step in range(3)])
    for joined in (modules, steps):
        for since in ("previous", "start"):
            assert torch.equal(joined.change(since), cores.change(since))
        assert torch.equal(joined.scaling, cores.scaling)


def test_cores_without_displacements_leave_none_to_their_batch():
    cores = batch(3)
    plain = RankCore(Frame(cores.row.R), Frame(cores.column.R), cores.scaling)
    both = RankCore.cat([cores, plain])
    assert both.row.previous is None and both.column.start is None
    assert torch.equal(both.norm(), torch.cat([cores.norm(), plain.norm()]))
    with pytest.raises(ValueError, match="no displacement since 'start'"):
        both.change("start")


def test_a_core_shows_itself_in_one_line():
    B, A = torch.diag(torch.tensor([3.0, 4.0])), torch.eye(2)
    shown = repr(core(B, A, scaling=0.5))
    assert shown == (
        "RankCore of rank 2: ||dW|| 2.5, singular values 2 1.5, "
        "displacements since previous and start"
    )
    assert "not finite" in repr(core(B, A / 0))
    plain = RankCore(Frame(torch.ones(3, 4, 2, 2)), Frame(torch.ones(3, 4, 2, 2)), torch.ones(3, 4))
    assert repr(plain) == "RankCore: 3 x 4 cores of rank 2"
