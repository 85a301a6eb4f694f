import pytest
import torch

from subspace_lab.theory import mask_moments
from subspace_lab.theory.enumeration import all_masks, mask_probabilities
from subspace_lab.theory.masked_moments import (
    balance_ratio,
    bernstein_bound,
    expected_output_energy,
    gram_product,
    masked_energy,
    output_energy_variance,
    update_covariance,
    update_mean,
    update_variance,
    variance_of_output_energy,
)

RANK, SCALING, RESCALE = 4, 0.7, 1.6


def laws():
    """Mask laws as (law, masks, weights): every mask that can occur, with its probability."""
    masks = all_masks(RANK)
    prefixes = torch.ones(RANK, RANK).tril() == 1
    uniform = torch.full((RANK,), 1 / RANK, dtype=torch.float64)
    pairs = all_masks(2).repeat_interleave(2, dim=1)
    pair_weights = mask_probabilities(all_masks(2), keep_prob=0.3)
    chosen = (masks.sum(1) == 3).double()
    return {
        "bernoulli": (
            mask_moments.bernoulli(RANK, keep_prob=0.3),
            masks,
            mask_probabilities(masks, keep_prob=0.3),
        ),
        "exact_k": (mask_moments.exact_k(RANK, kept=3), masks, chosen / chosen.sum()),
        "prefix": (mask_moments.prefix(RANK), prefixes, uniform),
        "blocks": (mask_moments.blocks(RANK, block_size=2, keep_prob=0.3), pairs, pair_weights),
    }


@pytest.fixture(params=["bernoulli", "exact_k", "prefix", "blocks"])
def law(request):
    return laws()[request.param]


@pytest.fixture
def factors():
    generator = torch.Generator().manual_seed(3)
    return (
        torch.randn(5, RANK, generator=generator, dtype=torch.float64),
        torch.randn(RANK, 6, generator=generator, dtype=torch.float64),
        torch.randn(6, 20, generator=generator, dtype=torch.float64),
    )


def enumerated(factors, law):
    """Masked updates (masks, m, n) with weights (masks, 1, 1)."""
    B, A, _ = factors
    _, masks, weights = law
    return SCALING * RESCALE * (B * masks[:, None].double()) @ A, weights[:, None, None]


def test_mean_and_entrywise_variance(deviation, factors, law):
    B, A, _ = factors
    updates, weights = enumerated(factors, law)
    mean = (weights * updates).sum(0)
    variance = (weights * (updates - mean) ** 2).sum(0)
    found = update_mean(B, A, law[0], scaling=SCALING, rescale=RESCALE)
    deviation("T5: mean update, any law", update_mean, (found - mean).abs().max(), 1e-13)
    found = update_variance(B, A, law[0], scaling=SCALING, rescale=RESCALE)
    error = (found - variance).abs().max()
    deviation("T5: entrywise variance, any law", update_variance, error, 1e-13)


def test_left_and_right_covariance(deviation, factors, law):
    B, A, _ = factors
    updates, weights = enumerated(factors, law)
    centred = updates - (weights * updates).sum(0)
    found = update_covariance(B, A, law[0], scaling=SCALING, rescale=RESCALE)
    left = (weights * (centred @ centred.mT)).sum(0)
    right = (weights * (centred.mT @ centred)).sum(0)
    error = max((found.left - left).abs().max(), (found.right - right).abs().max())
    deviation("T5: left and right covariance, any law", update_covariance, error, 1e-13)


@pytest.mark.parametrize("weighted", [False, True])
def test_output_energy(deviation, factors, law, weighted):
    B, A, X = factors
    inputs = X / X.shape[1] ** 0.5 if weighted else torch.eye(6, dtype=torch.float64)
    second_moment = inputs @ inputs.T if weighted else None
    updates, weights = enumerated(factors, law)
    outputs = updates @ inputs
    options = {"second_moment": second_moment, "scaling": SCALING, "rescale": RESCALE}
    energy = (weights * outputs**2).sum()
    error = abs(expected_output_energy(B, A, law[0], **options) / energy - 1)
    deviation("T5: E||dW Σ^½||², any law (relative)", expected_output_energy, error, 1e-13)
    variance = (weights * (outputs - (weights * outputs).sum(0)) ** 2).sum()
    error = abs(output_energy_variance(B, A, law[0], **options) / variance - 1)
    deviation("T5: output variance, any law (relative)", output_energy_variance, error, 1e-13)


@pytest.mark.parametrize("weighted", [False, True])
def test_variance_of_the_output_energy(deviation, factors, weighted):
    B, A, X = factors
    inputs = X if weighted else torch.eye(6, dtype=torch.float64)
    second_moment = inputs @ inputs.T if weighted else None
    updates, weights = enumerated(factors, laws()["bernoulli"])
    energies, weights = (updates @ inputs).square().sum((-2, -1)), weights.flatten()
    variance = weights @ (energies - weights @ energies) ** 2
    options = {"second_moment": second_moment, "scaling": SCALING, "rescale": RESCALE}
    found = variance_of_output_energy(B, A, keep_prob=0.3, **options)
    statement = "T5: Var ||dW Σ^½||² over Bernoulli masks (relative)"
    deviation(statement, variance_of_output_energy, abs(found / variance - 1), 1e-12)


def test_exact_k_form(deviation, factors):
    B, A, _ = factors
    found = output_energy_variance(B, A, mask_moments.exact_k(RANK, kept=1))
    trace = (B.norm(dim=0) * A.norm(dim=1)).square().sum()
    energy = (B @ A).square().sum()
    expected = 0.25 * 0.75 * (RANK * trace - energy) / (RANK - 1)
    error = abs(found / expected - 1)
    deviation("T5: exact-k output variance, closed form", output_energy_variance, error, 1e-13)


def test_cores_give_the_same_gram_product(deviation, factors):
    B, A, _ = factors
    core_B, core_A = torch.linalg.qr(B)[1], torch.linalg.qr(A.T)[1].T
    error = (gram_product(B, A) - gram_product(core_B, core_A)).abs().max()
    deviation("T5: cores stand in for the factors", gram_product, error, 1e-13)


def test_balance_ratio(deviation, factors):
    B, A, X = factors
    second_moment = X @ X.T
    weighted = B @ A @ torch.linalg.cholesky(second_moment)
    terms = [torch.outer(B[:, i], A[i]) @ torch.linalg.cholesky(second_moment) for i in range(RANK)]
    direct = sum(term.square().sum() for term in terms) / weighted.square().sum()
    found = balance_ratio(B, A, second_moment=second_moment)
    deviation("T5: balance ratio (relative)", balance_ratio, abs(found / direct - 1), 1e-13)
    sigma = torch.linalg.svdvals(weighted)
    assert found >= sigma.sum() ** 2 / (RANK * (sigma**2).sum())
    U, S, Vh = torch.linalg.svd(B @ A, full_matrices=False)
    error = abs(balance_ratio(U[:, :RANK] * S[:RANK], Vh[:RANK]) - 1)
    deviation("T5: balance ratio is 1 in the SVD gauge", balance_ratio, error, 1e-13)


def test_batches_go_through(factors, law):
    B, A, _ = factors
    stacked_B, stacked_A = torch.stack([B, 2 * B]), torch.stack([A, A])
    variance = update_variance(stacked_B, stacked_A, law[0])
    torch.testing.assert_close(variance[1], 4 * update_variance(B, A, law[0]))
    assert balance_ratio(stacked_B, stacked_A).shape == (2,)


@pytest.mark.parametrize("keep_prob", [0.2, 0.5, 0.9])
def test_bernstein_bound_holds(deviation, factors, keep_prob):
    B, A, _ = factors
    masks = all_masks(RANK)
    weights = mask_probabilities(masks, keep_prob=keep_prob)
    centred = (B * (masks[:, None].double() - keep_prob)) @ A
    true = weights @ torch.linalg.matrix_norm(centred, ord=2)
    bound = bernstein_bound(B, A, keep_prob=keep_prob)
    error = max(float(true - bound), 0.0)
    deviation("T5: matrix Bernstein bound, excess over it", bernstein_bound, error, 0.0)
    # For one direction the ingredients are plain numbers.
    b, a = B[:, :1], A[:1]
    size, log = float(b.norm() * a.norm()), torch.log(torch.tensor(11.0, dtype=torch.float64))
    by_hand = (2 * keep_prob * (1 - keep_prob) * size**2 * log).sqrt()
    by_hand += max(keep_prob, 1 - keep_prob) * size * log / 3
    error = abs(bernstein_bound(b, a, keep_prob=keep_prob) / by_hand - 1)
    deviation("T5: matrix Bernstein bound at rank 1 (relative)", bernstein_bound, error, 1e-13)


def test_balance_ratio_under_cancellation():
    """B = [b, -b], A = [a; a + δ e]: the terms are far longer than their sum δ b e^T."""
    generator = torch.Generator().manual_seed(0)
    b, a, e = torch.randn(3, 20, dtype=torch.float64, generator=generator)
    B = torch.stack([b, -b], dim=1)
    for size in (1e-6, 1e-9):
        A = torch.stack([a, a + size * e])
        direct = 2 * (a.norm() / (A[1] - A[0]).norm()) ** 2
        assert balance_ratio(B, A).item() == pytest.approx(float(direct), rel=1e-5)
    assert balance_ratio(B, torch.stack([a, a])).isnan()
    assert balance_ratio(0 * B, torch.stack([a, a])).isnan()


def test_energy_of_one_masked_update(factors, law, deviation):
    B, A, _ = factors
    updates, _ = enumerated(factors, law)
    masks = law[1].double()
    energies = (SCALING * RESCALE) ** 2 * masked_energy(gram_product(B, A), masks)
    error = (energies - updates.square().sum((-2, -1))).abs().max()
    deviation("T5: ||B D A||_F^2 = d^T H d", masked_energy, error, 1e-12)
