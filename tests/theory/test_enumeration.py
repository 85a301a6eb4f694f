import pytest
import torch

from subspace_lab.theory.enumeration import all_masks, mask_probabilities


def test_probabilities_are_those_of_independent_gates(deviation):
    masks = all_masks(6)
    probability = mask_probabilities(masks, keep_prob=0.3)
    assert len({tuple(mask) for mask in masks.tolist()}) == 64
    gates = masks.double()
    second = torch.einsum("k,ki,kj->ij", probability, gates, gates)
    expected = torch.full((6, 6), 0.09, dtype=torch.float64).fill_diagonal_(0.3)
    deviation(
        "T1: gates are Bernoulli(q) and independent",
        mask_probabilities,
        (second - expected).abs().max(),
        1e-14,
    )


def test_refuses_what_it_cannot_enumerate():
    with pytest.raises(ValueError, match="0 to 20 gates"):
        all_masks(21)
    with pytest.raises(ValueError, match="keep_prob"):
        mask_probabilities(all_masks(2), keep_prob=0.0)
