import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from scipy.special import expit, logit

from subspace_lab.theory import mask_moments
from subspace_lab.theory.inference_scale import (
    binary_inference_scale,
    fit_inference_scale,
    optimal_inference_scale,
)
from subspace_lab.theory.mask_overlap import kept_pmf
from subspace_lab.theory.masked_moments import balance_ratio

KEEP_PROB = 0.6


def problem():
    """A design that is not whitened."""
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(5, 30, generator=generator, dtype=torch.float64)
    X[0] *= 2
    return X, torch.randn(4, 30, generator=generator, dtype=torch.float64) + X[:4]


@pytest.mark.parametrize("rescale", [1.0, 1 / KEEP_PROB])
def test_optimal_scale_at_the_trained_optimum(deviation, minimize_masked_loss, rescale):
    X, Y = problem()
    law = mask_moments.bernoulli(3, keep_prob=KEEP_PROB)
    B, A = minimize_masked_loss(X, Y, law, scaling=0.5, rescale=rescale)
    ratio = float(balance_ratio(B, A, second_moment=X @ X.T / 30))
    predicted = optimal_inference_scale(ratio, keep_prob=KEEP_PROB, rescale=rescale)
    scales = np.linspace(0.5, 2, 7)
    losses = [float((Y - c * 0.5 * B @ A @ X).square().sum()) for c in scales]
    fit = fit_inference_scale(scales, np.array(losses))
    error = abs(fit.scale / predicted - 1)
    deviation("T9: optimal inference scale (relative)", optimal_inference_scale, error, 1e-8)
    least = float((Y - fit.scale * 0.5 * B @ A @ X).square().sum())
    error = max(abs(fit.minimum / least - 1), fit.residual / least)
    deviation("T9: parabola through the losses (relative)", fit_inference_scale, error, 1e-12)
    assert predicted > 1 if rescale > 1 else predicted < 1


@pytest.mark.parametrize("share", [0.51, 0.9, 0.99])
def test_optimal_scale_under_cross_entropy(share, deviation):
    """One prompt, a label with probability `share`: the masked optimum by enumerated counts.

    The masked loss is stationary at the logit u with E g (expit(u g) - share) = 0, and the loss at
    logit(share), so that c* = logit(share) / u.
    """
    q, rank = 0.5, 64
    kept = np.arange(rank + 1)
    weights, gates = kept_pmf(rank, keep_prob=q), kept / (q * rank)
    u = brentq(lambda u: weights @ (gates * (expit(u * gates) - share)), 1e-3, 50)
    best = logit(share) / u
    deviation(
        "T9: optimal inference scale under cross-entropy, second order",
        binary_inference_scale,
        abs(binary_inference_scale(u, rank=rank, keep_prob=q) - best),
        1e-3,
    )
    of_squared_loss = optimal_inference_scale(1 / rank, keep_prob=q, rescale=1 / q)
    if share == 0.51:  # cross-entropy is a squared loss here
        assert of_squared_loss == pytest.approx(best, abs=1e-4)
    else:
        assert best < of_squared_loss - 0.01
    assert (best < 1) == (share > 0.917)


def test_wrong_arguments():
    with pytest.raises(ValueError, match="three"):
        fit_inference_scale(np.array([1.0, 1.0, 2.0]), np.ones(3))
    with pytest.raises(ValueError, match="downwards"):
        fit_inference_scale(np.array([0.0, 1.0, 2.0]), np.array([0.0, 1.0, 0.0]))
