import math

import numpy as np
import pytest
import torch
from scipy import integrate, optimize

from subspace_lab.theory.spiked_null import bulk_edge, spike_threshold, spiked_singular_value

SHAPES = pytest.mark.parametrize(("m", "n"), [(30, 100), (90, 100), (250, 100)])


def stieltjes(z, aspect):
    """The means of 1 / (z² - s²) over the left (m) and right (n) singular values, by quadrature.

    Marchenko-Pastur law of the squares s² of an m x n matrix of variance 1 / n, for m <= n.
    """
    if aspect > 1:  # the transpose, with its variance brought back to 1 / n
        left, right = stieltjes(z / math.sqrt(aspect), 1 / aspect)
        return right / aspect, left / aspect
    low, high = (1 - math.sqrt(aspect)) ** 2, (1 + math.sqrt(aspect)) ** 2
    middle, half = (low + high) / 2, (high - low) / 2

    def integrand(angle):  # x = middle + half cos(angle)
        x = middle + half * math.cos(angle)
        density = half * math.sin(angle) / (2 * math.pi * aspect * x)
        return density * half * math.sin(angle) / (z**2 - x)

    left = integrate.quad(integrand, 0, math.pi, epsabs=1e-14, epsrel=1e-13)[0]
    return left, aspect * left + (1 - aspect) / z**2


@SHAPES
@pytest.mark.parametrize("factor", [1.2, 2.0, 5.0])
def test_outlier_solves_the_secular_equation(deviation, m, n, factor):
    # det(I - (W0 + dW)^T (...)) = 0 gives θ^-2 = φ_left(z) φ_right(z), φ = z mean 1 / (z² - s²).
    strength, edge = factor * spike_threshold(m, n), bulk_edge(m, n)

    def secular(z):
        return z**2 * math.prod(stieltjes(z, m / n)) - strength**-2

    root = optimize.brentq(secular, edge * (1 + 1e-9), 2 * edge + 2 * strength, xtol=1e-13)
    found = spiked_singular_value(strength, m=m, n=n)
    error = abs(found.singular_value / root - 1)
    deviation(
        "T18: outlier solves the secular equation (relative)", spiked_singular_value, error, 1e-9
    )
    # Cosines: -2 φ(z) / (θ² D'(z)), with the derivative of D = φ_left φ_right.
    step = 1e-5
    slope = (secular(root + step) - secular(root - step)) / (2 * step)
    cosines = [-2 * root * part / (strength**2 * slope) for part in stieltjes(root, m / n)]
    error = max(
        abs(found.left_cosine_squared - cosines[0]), abs(found.right_cosine_squared - cosines[1])
    )
    deviation("T18: overlaps from the secular equation", spiked_singular_value, error, 1e-6)


@SHAPES
def test_continuous_at_the_threshold(deviation, m, n):
    strength = spike_threshold(m, n)
    below, above = (spiked_singular_value(strength * (1 + e), m=m, n=n) for e in (-1e-9, 1e-9))
    assert above.above_threshold and not below.above_threshold
    error = abs(above.singular_value - below.singular_value)
    deviation("T18: the outlier leaves the bulk at its edge", bulk_edge, error, 1e-12)
    error = max(above.left_cosine_squared, above.right_cosine_squared)
    deviation("T18: overlaps start at 0 at the threshold", spike_threshold, error, 1e-7)


def test_simulation(deviation):
    m, n, strength, noise_std, runs = 150, 300, 3.0, 2.0, 40
    generator = torch.Generator().manual_seed(0)
    noise = noise_std * torch.randn(runs, m, n, generator=generator, dtype=torch.float64) / n**0.5
    noise[:, 0, 0] += strength
    U, S, Vh = torch.linalg.svd(noise, full_matrices=False)
    found = spiked_singular_value(strength, m=m, n=n, noise_std=noise_std)
    for name, samples, expected in [
        ("outlier", S[:, 0], found.singular_value),
        ("left overlap", U[:, 0, 0] ** 2, found.left_cosine_squared),
        ("right overlap", Vh[:, 0, 0] ** 2, found.right_cosine_squared),
    ]:
        error = abs(samples.mean() - expected) / (samples.std() / runs**0.5)
        deviation(f"T18: {name}, standard errors", spiked_singular_value, error, 4)


def test_bulk_edge_of_a_large_matrix(deviation):
    generator = np.random.default_rng(0)
    largest = np.linalg.norm(generator.normal(size=(400, 800)) / 800**0.5, ord=2)
    error = abs(largest / bulk_edge(400, 800) - 1)
    deviation("T18: edge of the bulk, 400 x 800 (relative)", bulk_edge, error, 0.02)
