import numpy as np
import pytest
import torch

from subspace_lab.theory import mask_moments
from subspace_lab.theory.enumeration import all_masks, mask_probabilities


def moments(masks, weights):
    masks, weights = masks.double().numpy(), (weights / weights.sum()).numpy()
    mean = weights @ masks
    return mean, masks.T @ (weights[:, None] * masks) - np.outer(mean, mean)


def gap(law, masks, weights):
    mean, covariance = moments(masks, weights)
    return max(abs(law.mean - mean).max(), abs(law.covariance - covariance).max())


def test_bernoulli(deviation):
    masks = all_masks(4)
    weights = mask_probabilities(masks, keep_prob=0.3)
    error = gap(mask_moments.bernoulli(4, keep_prob=0.3), masks, weights)
    deviation("T5: moments of Bernoulli masks", mask_moments.bernoulli, error, 1e-15)
    mean, covariance = moments(masks, weights)
    ratio = covariance.diagonal() / mean**2
    error = abs(ratio - mask_moments.relative_variance(keep_prob=0.3)).max()
    deviation("T5: variance of a rescaled gate d/q", mask_moments.relative_variance, error, 1e-14)


@pytest.mark.parametrize("kept", [0, 1, 3, 5])
def test_exact_k(deviation, kept):
    masks = all_masks(5)
    error = gap(mask_moments.exact_k(5, kept=kept), masks, (masks.sum(1) == kept).double())
    deviation("T5: moments of exact-k masks", mask_moments.exact_k, error, 1e-15)


@pytest.mark.parametrize("rank", [1, 5])
def test_prefix(deviation, rank):
    masks = torch.ones(rank, rank).tril() == 1
    error = gap(mask_moments.prefix(rank), masks, torch.ones(rank, dtype=torch.float64))
    deviation("T5: moments of nested prefix masks", mask_moments.prefix, error, 1e-15)


def test_two_masks(deviation):
    masks = all_masks(6)
    weights = mask_probabilities(masks, keep_prob=0.7)
    error = gap(mask_moments.two_masks(3, keep_prob=0.7), masks[:, :3] & masks[:, 3:], weights)
    deviation("T5: moments of the product of two masks", mask_moments.two_masks, error, 1e-15)


def test_blocks(deviation):
    masks = all_masks(3)
    weights = mask_probabilities(masks, keep_prob=0.6)
    law = mask_moments.blocks(6, block_size=2, keep_prob=0.6)
    error = gap(law, masks.repeat_interleave(2, dim=1), weights)
    deviation("T5: moments of block masks", mask_moments.blocks, error, 1e-15)
    assert np.array_equal(law.second_moment, law.covariance + np.outer(law.mean, law.mean))


def test_wrong_arguments():
    with pytest.raises(ValueError, match="divide"):
        mask_moments.blocks(6, block_size=4, keep_prob=0.6)
    with pytest.raises(ValueError, match="kept"):
        mask_moments.exact_k(3, kept=4)
