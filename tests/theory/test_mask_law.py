"""Each law against the enumeration of all masks and of all pairs of masks."""

import numpy as np
import pytest
import torch

from subspace_lab.errors import UserError
from subspace_lab.theory.enumeration import all_masks, mask_probabilities
from subspace_lab.theory.mask_law import LAWS, Bernoulli, ExactK, mask_law

RANK = 6
MASKS = all_masks(RANK).numpy()
BERNOULLI = mask_probabilities(all_masks(RANK), keep_prob=0.5).numpy()
EXACT = (MASKS.sum(1) == 3) / (MASKS.sum(1) == 3).sum()
ENUMERATED = {Bernoulli: BERNOULLI, ExactK: EXACT}


def test_all_laws_are_enumerated():
    assert set(LAWS.values()) == set(ENUMERATED)
    assert all(LAWS[name](0.5).sampling == name for name in LAWS)


@pytest.mark.parametrize("kind", ENUMERATED)
def test_a_law_is_that_of_its_masks(kind):
    law, weights = kind(0.5), ENUMERATED[kind]
    pairs = weights[:, None] * weights
    shared = (MASKS[:, None] & MASKS).sum(-1)
    union = (MASKS[:, None] | MASKS).sum(-1)
    jaccard = np.where(union > 0, shared / np.maximum(union, 1), 1)
    kept = np.bincount(MASKS.sum(1), weights, RANK + 1)
    overlap = np.bincount(shared.ravel(), pairs.ravel(), RANK + 1)
    np.testing.assert_allclose(law.kept_pmf(RANK), kept, atol=1e-14)
    np.testing.assert_allclose(law.overlap_pmf(RANK), overlap, atol=1e-14)
    assert law.jaccard(RANK) == pytest.approx((pairs * jaccard).sum(), rel=1e-13)
    moments = law.moments(RANK)
    np.testing.assert_allclose(moments.mean, weights @ MASKS, atol=1e-14)
    second = MASKS.T @ (weights[:, None] * MASKS)
    np.testing.assert_allclose(moments.second_moment, second, atol=1e-14)
    independent = abs(moments.covariance - np.diag(moments.covariance.diagonal())).max() < 1e-14
    assert law.independent_gates == independent


@pytest.mark.parametrize("kind", ENUMERATED)
def test_drawn_masks_follow_the_law(kind):
    uniform = np.random.default_rng(0).random((20_000, RANK))
    masks = kind(0.5).keep(uniform)
    counts = np.bincount(masks @ (1 << np.arange(RANK)), minlength=2**RANK)
    expected = 20_000 * ENUMERATED[kind]
    assert (counts[expected == 0] == 0).all()
    possible = expected > 0
    chi_square = ((counts - expected)[possible] ** 2 / expected[possible]).sum()
    freedom = possible.sum() - 1
    assert abs(chi_square - freedom) < 4 * np.sqrt(2 * freedom)
    assert np.array_equal(kind(0.5).keep(torch.from_numpy(uniform)).numpy(), masks)


def test_a_record_names_its_law():
    settings = {"granularity": "token", "rescale": False, "seed": 7}
    assert mask_law(0.25, sampling="exact-k", **settings) == ExactK(0.25, **settings)
    assert mask_law(0.25).factor == 4
    assert mask_law(0.25, rescale=False).factor == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"keep_prob": 0.0}, "keep_prob"),
        ({"keep_prob": 0.5, "sampling": "coin"}, "bernoulli or exact-k"),
    ],
)
def test_wrong_settings(settings, message):
    with pytest.raises(UserError, match=message):
        mask_law(**settings)


def test_exact_k_needs_a_whole_number():
    with pytest.raises(UserError, match=r"0\.3 x 8"):
        ExactK(0.3).check_rank(8)
