"""Effective ranks on spectra whose values are known in closed form."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from subspace_lab.linalg import effective_rank, nuclear_norm

MEASURES = [
    "entropy",
    "entropy_squared",
    "stable",
    "participation",
    "energy90",
    "energy95",
    "energy99",
    "numerical",
]
spectra = st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=12).map(
    lambda values: torch.tensor(sorted(values, reverse=True), dtype=torch.float64)
)


@pytest.mark.parametrize(
    ("sigma", "measure", "expected"),
    [
        # p = (2/3, 1/3): exp(log 3 - (2/3) log 2)
        ([2.0, 1.0], "entropy", 3 / 2 ** (2 / 3)),
        # p = (4/5, 1/5): exp(log 5 - (4/5) log 4)
        ([2.0, 1.0], "entropy_squared", 5 / 4**0.8),
        ([2.0, 1.0], "stable", 5 / 4),
        ([2.0, 1.0], "participation", 25 / 17),
        ([3.0, 1.0, 0.0], "energy90", 1.0),  # exactly 90 %: a tie counts as reached
        ([3.0, 1.0, 0.0], "energy95", 2.0),
        ([1.0, 0.1, 0.01], "energy99", 1.0),
        ([1.0, 0.11, 0.01], "energy99", 2.0),
        ([1.0, 1e-12, 1e-14], "numerical", 2.0),
    ],
)
def test_closed_forms(sigma, measure, expected):
    value = effective_rank(torch.tensor(sigma, dtype=torch.float64), measure=measure)
    assert value.item() == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("k", [1, 7, 10])
def test_flat_spectra_have_their_number_of_values(measure, k):
    sigma = torch.cat([torch.full((k,), 0.3), torch.zeros(5)])
    share = int(measure[-2:]) / 100 if measure.startswith("energy") else 1
    assert effective_rank(sigma, measure=measure).item() == pytest.approx(
        math.ceil(share * k - 1e-9), rel=1e-12
    )


@pytest.mark.parametrize("measure", MEASURES)
def test_zero_spectrum(measure):
    assert effective_rank(torch.zeros(3, 4), measure=measure).tolist() == [0, 0, 0]


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_value_that_is_not_finite_has_no_rank(measure, bad):
    sigma = torch.tensor([[2.0, bad], [bad, 1.0], [2.0, 2.0]])
    ranks = effective_rank(sigma, measure=measure)
    assert ranks.isnan().tolist() == [True, True, False]
    # Past the kept directions values are rounding, and nothing else about them matters.
    assert effective_rank(sigma[0], measure=measure, kept=1) == 1


@pytest.mark.parametrize("measure", MEASURES)
def test_values_past_the_kept_directions_are_dropped(measure):
    sigma = torch.tensor([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0]])
    ranks = effective_rank(sigma, measure=measure, kept=torch.tensor([2, 0]))
    assert ranks.tolist() == [effective_rank(sigma[0, :2], measure=measure).item(), 0]


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("scale", [1e-160, 1e-3, 1e160])
def test_scale_invariance_without_overflow(measure, scale):
    sigma = torch.tensor([4.0, 2.0, 1.0], dtype=torch.float64)
    torch.testing.assert_close(
        effective_rank(scale * sigma, measure=measure), effective_rank(sigma, measure=measure)
    )


@given(spectra)
def test_order_of_the_measures(sigma):
    """Renyi entropies of sigma^2 fall with their order, and sigma is flatter than sigma^2."""
    names = ["stable", "participation", "entropy_squared", "entropy", "numerical"]
    values = [effective_rank(sigma, measure=name).item() for name in names]
    assert values[0] >= 1 - 1e-12
    assert all(a <= b * (1 + 1e-12) for a, b in itertools.pairwise(values))


@given(spectra)
def test_zeros_change_nothing(sigma):
    padded = torch.cat([sigma, torch.zeros(3, dtype=torch.float64)])
    for name in MEASURES:
        a, b = (effective_rank(s, measure=name).item() for s in (sigma, padded))
        assert a == pytest.approx(b, rel=1e-14)


def test_stable_rank_of_weightwatcher():
    weightwatcher = pytest.importorskip("weightwatcher.RMT_Util")
    sigma = torch.rand(9, dtype=torch.float64).sort(descending=True).values
    true = weightwatcher.stable_rank(np.asarray(sigma**2))
    assert effective_rank(sigma, measure="stable").item() == pytest.approx(true, rel=1e-14)


def test_nuclear_norm_and_unknown_measure():
    assert nuclear_norm(torch.tensor([3.0, 1.0])) == 4
    with pytest.raises(Exception, match="measure"):
        effective_rank(torch.ones(2), measure="effective")  # type: ignore[arg-type]
