import itertools

import pytest
import torch

from subspace_lab.theory import mask_moments
from subspace_lab.theory.enumeration import all_masks, mask_probabilities
from subspace_lab.theory.regularizer import (
    equalised_factors,
    expected_squared_loss,
    explicit_regularizer,
    nuclear_norm_bound,
)

KEEP_PROB, SCALING = 0.4, 1.3


def problem(m=3, r=2, n=3, tokens=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(m, r), (r, n), (n, tokens), (m, tokens)]
    return [torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in shapes]


def shared(r, tokens):
    """One mask for all tokens (per step): (masks, tokens, r) and weights."""
    masks = all_masks(r)
    return masks[:, None].expand(-1, tokens, r), mask_probabilities(masks, keep_prob=KEEP_PROB)


def own(r, tokens):
    """A mask for each token: (masks, tokens, r) and weights."""
    masks = all_masks(r * tokens)
    weights = mask_probabilities(masks, keep_prob=KEEP_PROB)
    return masks.reshape(-1, tokens, r), weights


@pytest.mark.parametrize("granularity", [shared, own])
@pytest.mark.parametrize("rescale", [1.0, 1 / KEEP_PROB])
def test_expected_loss_by_enumeration(deviation, granularity, rescale):
    B, A, X, Y = problem()
    masks, weights = granularity(2, 2)
    hidden = (A @ X).T * masks.double()
    losses = (Y - SCALING * rescale * (hidden @ B.T).mT).square().sum((1, 2)) / 2
    law = mask_moments.bernoulli(2, keep_prob=KEEP_PROB)
    found = expected_squared_loss(B, A, X, Y, law, scaling=SCALING, rescale=rescale)
    error = abs(found.total / (weights @ losses) - 1)
    name = "step" if granularity is shared else "token"
    statement = f"T7: expected squared loss, mask per {name} (relative)"
    deviation(statement, expected_squared_loss, error, 1e-13)
    penalty = (SCALING * rescale) ** 2 * KEEP_PROB * (1 - KEEP_PROB)
    penalty *= explicit_regularizer(B, A, second_moment=X @ X.T / 2)
    error = abs(found.mask_penalty / penalty - 1)
    deviation("T7: R is the mask's penalty (relative)", explicit_regularizer, error, 1e-13)


def test_expected_loss_with_input_dropout(deviation):
    B, A, X, Y = problem()
    input_keep_prob, losses = 0.7, 0.0
    for mask, inputs in itertools.product(all_masks(2), all_masks(6)):
        weight = mask_probabilities(mask, keep_prob=KEEP_PROB)
        weight = weight * mask_probabilities(inputs, keep_prob=input_keep_prob)
        dropped = X * inputs.reshape(3, 2).double() / input_keep_prob
        losses += (
            weight * (Y - SCALING * 1.5 * B @ mask.double().diag() @ A @ dropped).square().sum() / 2
        )
    law = mask_moments.bernoulli(2, keep_prob=KEEP_PROB)
    options = {"scaling": SCALING, "rescale": 1.5, "input_keep_prob": input_keep_prob}
    found = expected_squared_loss(B, A, X, Y, law, **options)
    error = abs(found.total / losses - 1)
    deviation(
        "T7: expected loss with input dropout (relative)", expected_squared_loss, error, 1e-13
    )
    regularizer = explicit_regularizer(
        B, A, second_moment=X @ X.T / 2, input_keep_prob=input_keep_prob
    )
    penalty = (SCALING * 1.5) ** 2 * KEEP_PROB * (1 - KEEP_PROB) * regularizer
    error = abs(found.mask_penalty / penalty - 1)
    deviation("T7: R with input dropout (relative)", explicit_regularizer, error, 1e-13)


def test_expected_loss_of_correlated_masks(deviation):
    B, A, X, Y = problem(r=3)
    masks = torch.ones(3, 3, dtype=torch.float64).tril()
    losses = (Y - B @ (masks[:, :, None] * (A @ X))).square().sum((1, 2)) / 2
    found = expected_squared_loss(B, A, X, Y, mask_moments.prefix(3))
    error = abs(found.total / losses.mean() - 1)
    deviation("T7: expected loss, prefix masks (relative)", expected_squared_loss, error, 1e-13)


def test_nuclear_norm_bound_holds_in_random_gauges(deviation):
    B, A, X, _ = problem(m=6, r=4, n=5, tokens=9)
    second_moment = X @ X.T / 9
    bound = nuclear_norm_bound(B, A, second_moment=second_moment)
    direct = torch.linalg.svdvals(B @ A @ torch.linalg.cholesky(second_moment)).sum() ** 2 / 4
    deviation(
        "T7: nuclear-norm bound (relative)", nuclear_norm_bound, abs(bound / direct - 1), 1e-12
    )
    generator, excess = torch.Generator().manual_seed(2), 0.0
    for _ in range(50):
        T = torch.randn(4, 4, generator=generator, dtype=torch.float64)
        penalty = explicit_regularizer(B @ torch.linalg.inv(T), T @ A, second_moment=second_moment)
        excess = max(excess, float(bound - penalty))
    deviation("T7: R >= nuclear-norm bound, excess", nuclear_norm_bound, excess, 0.0)


@pytest.mark.parametrize("rank", [3, 4, 5, 33])
@pytest.mark.parametrize("weighted", [False, True])
def test_equalised_gauge_attains_the_bound(deviation, rank, weighted):
    B, A, X, _ = problem(m=6, r=3, n=5, tokens=9)
    second_moment = X @ X.T / 9 if weighted else None
    factors = equalised_factors(B @ A, rank=rank, second_moment=second_moment)
    error = (factors.B @ factors.A - B @ A).abs().max()
    deviation("T7: equalised factors multiply to the update", equalised_factors, error, 1e-12)
    found = explicit_regularizer(factors.B, factors.A, second_moment=second_moment)
    bound = nuclear_norm_bound(B, A, second_moment=second_moment) * 3 / rank
    error = abs(found / bound - 1)
    deviation("T7: equalised gauge attains the bound (relative)", equalised_factors, error, 1e-12)
    norms = factors.B.norm(dim=0)
    error = (norms / norms.mean() - 1).abs().max()
    deviation("T7: equal column norms in that gauge", equalised_factors, error, 1e-12)


def test_wrong_keep_prob():
    B, A, _, _ = problem()
    with pytest.raises(ValueError, match="keep_prob"):
        explicit_regularizer(B, A, input_keep_prob=0.0)
