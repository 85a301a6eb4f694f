"""The second order of gates that are drawn together (T11), by enumeration of their masks."""

import pytest
import torch

from subspace_lab.theory import mask_moments
from subspace_lab.theory.correlated_gates import covariance_trace
from subspace_lab.theory.enumeration import all_masks
from subspace_lab.theory.gates import gate_trace
from tests.theory.gate_network import RANK, Network

DRAWS = {
    "exact-k": all_masks(RANK)[all_masks(RANK).sum(1) == 2].double() * RANK / 2,
    "prefix": torch.ones(RANK, RANK).tril().double(),
}
MOMENTS = {"exact-k": mask_moments.exact_k(RANK, kept=2), "prefix": mask_moments.prefix(RANK)}
RESCALE = {"exact-k": RANK / 2, "prefix": 1.0}


@pytest.mark.parametrize("law", DRAWS)
@pytest.mark.parametrize("attention", [True, False])
def test_the_second_order_takes_the_covariance_of_the_gates(law, attention, deviation):
    """Of a small adapter: what is left of the gap is of third order. Variances alone miss it."""
    covariance = RESCALE[law] ** 2 * torch.from_numpy(MOMENTS[law].covariance)
    mean = [RESCALE[law] * torch.from_numpy(MOMENTS[law].mean)] * 2
    network = Network(attention=attention, strength=2e-4, seed=6)
    pairs = [(first, second) for first in DRAWS[law] for second in DRAWS[law]]
    gap = sum(network(*pair).item() for pair in pairs) / len(pairs) - network(*mean).item()
    predicted = covariance_trace(network, mean, covariance).total / 2
    deviation(
        "T11: gap of a small adapter = tr(Cov H) / 2 for correlated gates, relative",
        covariance_trace,
        abs(gap / predicted - 1),
        5e-3,
    )
    variances = covariance.diag().diag()
    assert abs(covariance_trace(network, mean, variances).total / 2 / gap - 1) > 0.1


def test_exact_k_lacks_the_curvature_along_the_scale(deviation):
    network, mean = Network(attention=True), [torch.ones(RANK).double()] * 2
    covariance = (RANK / 2) ** 2 * torch.from_numpy(MOMENTS["exact-k"].covariance)
    found = covariance_trace(network, mean, covariance).per_layer
    of_layer = (lambda g: network(g, mean[1]), lambda g: network(mean[0], g))
    along = torch.stack([torch.func.hessian(loss)(mean[0]).sum() for loss in of_layer])  # 1^T H 1
    variance = covariance[0, 0]
    expected = variance / (RANK - 1) * (RANK * gate_trace(network, mean).per_layer - along)
    deviation(
        "T11: tr(Cov H) of exact-k masks",
        covariance_trace,
        (found - expected).abs().max(),
        1e-12,
    )
