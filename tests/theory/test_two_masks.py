import pytest
import torch

from subspace_lab.theory.enumeration import all_masks, mask_probabilities
from subspace_lab.theory.mask_moments import relative_variance
from subspace_lab.theory.two_masks import matching_keep_prob, rate_readings, two_mask_law

R = 3


def pairs(q1, q2):
    """All pairs of masks with their probabilities."""
    first, second = all_masks(R).repeat_interleave(2**R, 0), all_masks(R).repeat(2**R, 1)
    weights = mask_probabilities(first, keep_prob=q1) * mask_probabilities(second, keep_prob=q2)
    return first, second, weights


def test_two_masks_are_their_intersection_gradients_included(deviation):
    draw = torch.Generator().manual_seed(0)
    B, A, target = (
        torch.randn(x, dtype=torch.float64, generator=draw) for x in [(4, R), (R, 5), (4, 5)]
    )

    def two(B, A, first, second):
        return ((B * first) @ (second[:, None] * A) - target).square().sum()

    def one(B, A, mask):
        return (B @ torch.diag(mask) @ A - target).square().sum()

    for first, second in zip(*pairs(0.5, 0.5)[:2], strict=True):
        found = torch.func.grad_and_value(two, (0, 1))(B, A, first.double(), second.double())
        expected = torch.func.grad_and_value(one, (0, 1))(B, A, (first & second).double())
        error = [(a - b).abs().max() for a, b in zip(found[0], expected[0], strict=True)]
        deviation(
            "T17: loss and gradients are those of the intersection mask",
            two_mask_law,
            max(*error, abs(found[1] - expected[1])),
            1e-13,
        )


@pytest.mark.parametrize(("q1", "q2"), [(0.5, 0.5), (0.3, 0.8)])
def test_law_by_enumeration(q1, q2, deviation):
    first, second, weights = pairs(q1, q2)
    both = (first & second).double()
    law = two_mask_law(R, keep_prob=(q1, q2))
    overlap = weights @ (both @ both.T) @ weights
    gate = both[:, 0] / (q1 * q2)
    variance = weights @ (gate - 1) ** 2
    deviation(
        "T17: rank r q1 q2", two_mask_law, abs(law.expected_rank - weights @ both.sum(1)), 1e-14
    )
    deviation(
        "T17: overlap of successive masks r (q1 q2)^2",
        two_mask_law,
        abs(law.expected_overlap - overlap),
        1e-14,
    )
    deviation(
        "T17: penalty = variance of a rescaled gate",
        two_mask_law,
        abs(law.penalty - variance),
        1e-13,
    )
    probability = torch.stack(
        [weights[(both == mask).all(1)].sum() for mask in all_masks(R).double()]
    )
    single = mask_probabilities(all_masks(R), keep_prob=law.keep_prob)
    deviation(
        "T17: the product is one Bernoulli(q1 q2) mask",
        two_mask_law,
        (probability - single).abs().max(),
        1e-14,
    )


def test_penalty_ratio_and_matching(deviation):
    for q in [0.1, 0.5, 0.9]:
        ratio = two_mask_law(R, keep_prob=(q, q)).penalty / relative_variance(keep_prob=q)
        deviation("T17: lam(q^2) / lam(q) = (1+q)/q", two_mask_law, abs(ratio - (1 + q) / q), 1e-12)
        each = matching_keep_prob(keep_prob=q)
        matched = two_mask_law(R, keep_prob=(each, each))
        deviation(
            "T17: sqrt(q) each matches one mask",
            matching_keep_prob,
            abs(matched.keep_prob - q),
            1e-15,
        )


def test_readings_of_a_rate(deviation):
    """Against what nn.Dropout does, whose rate is a prune probability."""
    for rate in [0.1, 0.3, 0.5]:
        prune, keep = rate_readings(rate)
        scale = torch.nn.functional.dropout(torch.ones(1000).double(), rate, training=True).max()
        deviation(
            "T17: lam of nn.Dropout(rate)", rate_readings, abs(prune - (scale.item() - 1)), 1e-12
        )
        deviation(
            "T17: the two readings are reciprocal", rate_readings, abs(prune * keep - 1), 1e-14
        )
    assert rate_readings(0.1)[1] / rate_readings(0.1)[0] == pytest.approx(81)
