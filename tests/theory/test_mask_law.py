import pytest
import torch

from subspace_lab.theory import mask_law
from subspace_lab.theory.enumeration import all_masks, mask_probabilities


def moments(masks, weights):
    masks, weights = masks.double(), weights / weights.sum()
    mean = weights @ masks
    return mean, masks.T @ (weights[:, None] * masks) - torch.outer(mean, mean)


def gap(law, masks, weights):
    mean, covariance = moments(masks, weights)
    return max((law.mean - mean).abs().max(), (law.covariance - covariance).abs().max())


def test_bernoulli(deviation):
    masks = all_masks(4)
    weights = mask_probabilities(masks, keep_prob=0.3)
    error = gap(mask_law.bernoulli(4, keep_prob=0.3), masks, weights)
    deviation("T5: moments of Bernoulli masks", mask_law.bernoulli, error, 1e-15)
    mean, covariance = moments(masks, weights)
    ratio = covariance.diagonal() / mean**2
    error = (ratio - mask_law.relative_variance(keep_prob=0.3)).abs().max()
    deviation("T5: variance of a rescaled gate d/q", mask_law.relative_variance, error, 1e-14)


@pytest.mark.parametrize("kept", [0, 1, 3, 5])
def test_exact_k(deviation, kept):
    masks = all_masks(5)
    error = gap(mask_law.exact_k(5, kept=kept), masks, (masks.sum(1) == kept).double())
    deviation("T5: moments of exact-k masks", mask_law.exact_k, error, 1e-15)


@pytest.mark.parametrize("rank", [1, 5])
def test_prefix(deviation, rank):
    masks = torch.ones(rank, rank).tril() == 1
    error = gap(mask_law.prefix(rank), masks, torch.ones(rank, dtype=torch.float64))
    deviation("T5: moments of nested prefix masks", mask_law.prefix, error, 1e-15)


def test_two_masks(deviation):
    masks = all_masks(6)
    weights = mask_probabilities(masks, keep_prob=0.7)
    error = gap(mask_law.two_masks(3, keep_prob=0.7), masks[:, :3] & masks[:, 3:], weights)
    deviation("T5: moments of the product of two masks", mask_law.two_masks, error, 1e-15)


def test_blocks(deviation):
    masks = all_masks(3)
    weights = mask_probabilities(masks, keep_prob=0.6)
    law = mask_law.blocks(6, block_size=2, keep_prob=0.6)
    error = gap(law, masks.repeat_interleave(2, dim=1), weights)
    deviation("T5: moments of block masks", mask_law.blocks, error, 1e-15)
    assert torch.equal(law.second_moment, law.covariance + torch.outer(law.mean, law.mean))


def test_wrong_arguments():
    with pytest.raises(ValueError, match="divide"):
        mask_law.blocks(6, block_size=4, keep_prob=0.6)
    with pytest.raises(ValueError, match="kept"):
        mask_law.exact_k(3, kept=4)
