import numpy as np
import pytest
import torch

from subspace_lab.linalg.effective_rank import effective_rank
from subspace_lab.linalg.spectra import singular_values
from subspace_lab.theory.enumeration import all_masks, mask_probabilities
from subspace_lab.theory.masked_rank import factor_interlacing, masked_rank_law, update_interlacing

RANK = 5


@pytest.fixture
def factors():
    generator = torch.Generator().manual_seed(11)
    return (
        torch.randn(7, RANK, generator=generator, dtype=torch.float64),
        torch.randn(RANK, 6, generator=generator, dtype=torch.float64),
    )


def test_rank_law_by_counting_ranks(deviation, factors):
    B, A = factors
    masks = all_masks(RANK)
    ranks = torch.linalg.matrix_rank((B * masks[:, None].double()) @ A)
    counted = torch.zeros(RANK + 1, dtype=torch.float64)
    counted.index_add_(0, ranks, mask_probabilities(masks, keep_prob=0.3))
    law = masked_rank_law(RANK, keep_prob=0.3)
    error = np.abs(counted.numpy() - law.pmf).max()
    deviation("T6: the rank of a masked update is Bin(r, q)", masked_rank_law, error, 1e-14)
    values = np.arange(RANK + 1)
    error = max(
        abs(law.pmf @ values - law.mean), abs(law.pmf @ (values - law.mean) ** 2 - law.variance)
    )
    deviation("T6: mean and variance of the rank", masked_rank_law, error, 1e-14)
    low, high = law.interval
    assert law.coverage == pytest.approx(law.pmf[low : high + 1].sum()) and law.coverage >= 0.95


def test_interlacing_of_the_update(deviation, factors):
    B, A = factors
    full = torch.linalg.svdvals(B @ A)[:RANK]
    excess = [0.0]
    for mask in all_masks(RANK):
        kept = int(mask.sum())
        sigma = torch.linalg.svdvals((B * mask.double()) @ A)[:kept]
        bounds = update_interlacing(full, kept=kept)
        excess += [float(gap) for gap in torch.cat([bounds.lower - sigma, sigma - bounds.upper])]
    deviation("T6: Weyl bounds on σ(BDA), excess", update_interlacing, max(excess), 1e-13)


def test_weyl_bounds_are_attained(deviation):
    # B D A = diag(5, 3); the dropped third term turns it into B A = diag(3, 3).
    B = torch.tensor([[1.0, 0.0, -1.0], [0.0, 1.0, 0.0]], dtype=torch.float64)
    A = torch.tensor([[5.0, 0.0], [0.0, 3.0], [2.0, 0.0]], dtype=torch.float64)
    mask = torch.tensor([True, True, False])
    sigma, full = singular_values(B, A, mask=mask), singular_values(B, A)
    assert sigma[0] > full[0], "masking can increase the spectral norm"
    upper = update_interlacing(full, kept=2).upper
    deviation("T6: upper Weyl bound attained", update_interlacing, abs(sigma[1] - upper[1]), 1e-14)
    # Of two orthogonal terms the larger is dropped.
    sigma = singular_values(B[:, :2], A[:2], mask=torch.tensor([False, True]))
    lower = update_interlacing(singular_values(B[:, :2], A[:2]), kept=1).lower
    deviation("T6: lower Weyl bound attained", update_interlacing, abs(sigma[0] - lower[0]), 1e-14)


def test_interlacing_of_a_factor(deviation, factors):
    _, A = factors
    full = torch.linalg.svdvals(A)
    excess = [0.0]
    for mask in all_masks(RANK)[1:]:
        sigma = torch.linalg.svdvals(A[mask])
        bounds = factor_interlacing(full, kept=int(mask.sum()))
        excess += [float(gap) for gap in torch.cat([bounds.lower - sigma, sigma - bounds.upper])]
    deviation("T6: Cauchy bounds on σ(A_M), excess", factor_interlacing, max(excess), 1e-13)


@pytest.mark.parametrize("measure", ["entropy", "stable"])
def test_effective_rank_equals_the_count_in_the_equalised_orthogonal_gauge(deviation, measure):
    generator = torch.Generator().manual_seed(1)
    B = torch.linalg.qr(torch.randn(7, RANK, generator=generator, dtype=torch.float64))[0]
    A = torch.linalg.qr(torch.randn(6, RANK, generator=generator, dtype=torch.float64))[0].T
    masks = all_masks(RANK)[1:]
    found = effective_rank(singular_values(B, A, mask=masks), measure=measure)
    error = (found - masks.sum(1)).abs().max()
    deviation(f"T6: {measure} rank is |M| for orthonormal factors", effective_rank, error, 1e-12)


def test_wrong_kept():
    with pytest.raises(ValueError, match="kept"):
        update_interlacing(torch.ones(3), kept=4)
