import numpy as np
import pytest
import torch

from subspace_lab.linalg import effective_rank
from subspace_lab.theory import mask_moments
from subspace_lab.theory.regularizer import equalised_factors, expected_squared_loss
from subspace_lab.theory.shrinkage import dropout_minimizer, dropout_spectrum, optimal_prune_prob


def problem(m=6, n=5, tokens=40, whitened=True, seed=0):
    generator = torch.Generator().manual_seed(seed)
    X = torch.randn(n, tokens, generator=generator, dtype=torch.float64)
    if whitened:
        X = torch.linalg.qr(X.T)[0].T * tokens**0.5
    W = torch.randn(m, n, generator=generator, dtype=torch.float64)
    Y = W @ X + 2 * torch.randn(m, tokens, generator=generator, dtype=torch.float64)
    return X, Y, W


@pytest.mark.parametrize("whitened", [True, False])
@pytest.mark.parametrize(("rank", "keep_prob"), [(3, 0.9), (4, 0.5), (6, 0.7), (6, 0.3)])
def test_minimizer_against_bfgs(deviation, minimize_masked_loss, whitened, rank, keep_prob):
    X, Y, _ = problem(whitened=whitened)
    second_moment = X @ X.T / X.shape[1]
    least_squares = Y @ X.T @ torch.linalg.inv(X @ X.T)
    law = mask_moments.bernoulli(rank, keep_prob=keep_prob)
    B, A = minimize_masked_loss(X, Y, law, scaling=0.8, rescale=1 / keep_prob)
    found = dropout_minimizer(
        least_squares, rank=rank, keep_prob=keep_prob, second_moment=second_moment
    )
    error = (0.8 * B @ A - found).abs().max()
    deviation("T8: closed-form minimizer against BFGS", dropout_minimizer, error, 1e-6)
    products = 0.8 * B.norm(dim=0) * (A @ second_moment @ A.T).diagonal().sqrt()
    expected = torch.linalg.svdvals(found @ torch.linalg.cholesky(second_moment)).sum() / rank
    error = (products - expected).abs().max()
    deviation("T8: all ||b_i|| ||a_i|| are ||dW||_* / r", dropout_minimizer, error, 1e-6)


def test_minimizer_without_rescale(deviation, minimize_masked_loss):
    X, Y, _ = problem()
    least_squares = Y @ X.T / X.shape[1]
    law = mask_moments.bernoulli(3, keep_prob=0.6)
    B, A = minimize_masked_loss(X, Y, law, scaling=0.8, rescale=1.0)
    found = dropout_minimizer(least_squares, rank=3, keep_prob=0.6) / 0.6
    error = (0.8 * B @ A - found).abs().max()
    deviation("T8: Eq. 2 overshoots by 1/q, against BFGS", dropout_minimizer, error, 1e-6)


@pytest.mark.parametrize("keep_prob", [0.2, 0.5, 0.8, 1.0])
@pytest.mark.parametrize("rank", [2, 5, 9])
def test_spectrum_against_bisection(deviation, rank, keep_prob):
    sigma = torch.tensor([5.0, 3.0, 2.0, 1.0, 0.5, 0.1], dtype=torch.float64)
    strength, low, high = (1 - keep_prob) / (keep_prob * rank), 0.0, 5.0
    for _ in range(200):
        middle = (low + high) / 2
        implied = strength * (sigma[:rank] - middle).clamp_min(0).sum()
        low, high = (middle, high) if implied > middle else (low, middle)
    found = dropout_spectrum(sigma, rank=rank, keep_prob=keep_prob)
    error = abs(float(found.threshold) - low)
    deviation("T8: threshold solves its fixed point", dropout_spectrum, error, 1e-14)
    error = (found.spectrum[:rank] - (sigma[:rank] - low).clamp_min(0)).abs().max()
    deviation("T8: soft-thresholded spectrum", dropout_spectrum, error, 1e-14)
    assert not found.spectrum[rank:].any()
    assert found.kept == (found.spectrum > 0).sum()


def test_threshold_without_clipping(deviation):
    sigma = torch.tensor([[5.0, 4.0, 3.5, 3.0], [9.0, 8.0, 7.0, 0.0]], dtype=torch.float64)
    found = dropout_spectrum(sigma, rank=3, keep_prob=0.8)
    error = (found.threshold - 0.2 * sigma[:, :3].mean(1)).abs().max()
    deviation("T8: τ = (1 - q) mean σ without clipping", dropout_spectrum, error, 1e-14)
    error = (found.spectrum.sum(1) / sigma[:, :3].sum(1) - 0.8).abs().max()
    deviation("T8: nuclear norm shrinks by q without clipping", dropout_spectrum, error, 1e-14)


def test_equalised_minimizer_is_stationary(deviation):
    X, Y, _ = problem(whitened=False)
    second_moment = X @ X.T / X.shape[1]
    least_squares = Y @ X.T @ torch.linalg.inv(X @ X.T)
    found = dropout_minimizer(least_squares, rank=5, keep_prob=0.5, second_moment=second_moment)
    factors = equalised_factors(found, rank=5, second_moment=second_moment)
    B, A = factors.B.requires_grad_(), factors.A.requires_grad_()
    law = mask_moments.bernoulli(5, keep_prob=0.5)
    expected_squared_loss(B, A, X, Y, law, rescale=2.0).total.backward()
    error = max(B.grad.abs().max(), A.grad.abs().max())
    deviation("T8: gradient at the equalised minimizer", dropout_minimizer, error, 1e-11)


@pytest.mark.parametrize("measure", ["entropy", "entropy_squared", "stable", "participation"])
def test_no_effective_rank_of_the_weighted_update_rises(deviation, measure):
    """It is dW Σ^½ whose ranks fall; those of dW may rise, where a strong target has weak input."""

    def change(M, scale, weights):
        masked = dropout_minimizer(M, rank=2, keep_prob=0.5, second_moment=scale.square().diag())
        before, after = (torch.linalg.svdvals(W * weights) for W in (M, masked))
        after, before = (effective_rank(sigma[:2], measure=measure) for sigma in (after, before))
        return float(after - before)

    draw = torch.Generator().manual_seed(6)
    rises = []
    for _ in range(20):
        M = torch.randn(5, 2, generator=draw, dtype=torch.float64)
        scale = torch.rand(2, generator=draw, dtype=torch.float64)
        rises.append(change(M, scale, scale))
    statement = "T8: effective ranks of dW Σ^½ do not rise, excess over the unmasked ones"
    deviation(statement, dropout_minimizer, max(0.0, *rises), 1e-9)
    M, scale = torch.tensor([3.0, 1.0]).double().diag(), torch.tensor([0.2, 1.0]).double()
    assert change(M, scale, scale) < 0 < change(M, scale, torch.ones(2))


@pytest.mark.parametrize("held_out", [False, True])
def test_optimal_prune_prob_against_a_grid(deviation, held_out):
    X, Y, W = problem(m=4, n=4, tokens=60)
    M = Y @ X.T / X.shape[1]
    if held_out:
        generator = torch.Generator().manual_seed(5)
        W = W + 0.1 * torch.randn(4, 4, generator=generator, dtype=torch.float64)
    found = optimal_prune_prob(M, W, rank=3)
    assert 0 < found.prune_prob < 1 and not found.clipped
    grid = np.linspace(0, 0.99, 100)
    for _ in range(4):  # refine around the best point
        errors = [
            float((dropout_minimizer(M, rank=3, keep_prob=1 - p) - W).square().sum()) for p in grid
        ]
        best = grid[int(np.argmin(errors))]
        width = grid[1] - grid[0]
        grid = np.linspace(max(best - width, 0), best + width, 41)
    error = abs(found.prune_prob - best)
    deviation("T8: optimal prune rate against a grid", optimal_prune_prob, error, 1e-5)


def test_optimal_prune_prob_says_when_it_is_not_exact():
    M = torch.diag(torch.tensor([3.0, 0.1], dtype=torch.float64))
    assert optimal_prune_prob(M, 0.5 * M, rank=2).clipped
    assert optimal_prune_prob(M, 2 * M, rank=1).prune_prob == 0.0
    assert optimal_prune_prob(M, 2 * M, rank=1).noise_fraction == pytest.approx(-1)
    with pytest.raises(ValueError, match="rank 3"):
        optimal_prune_prob(M, M, rank=3)
