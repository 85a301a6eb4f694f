"""Effective ranks of a spectrum, each under its own name.

"Effective rank" has several meanings in print; on one spectrum they differ by factors. Every
measure here is invariant to scaling of the spectrum and at most the number of non-zero values.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from .triangular import EPS, RANK_TOLERANCE

Measure = Literal[
    "entropy",
    "entropy_squared",
    "stable",
    "participation",
    "energy90",
    "energy95",
    "energy99",
    "numerical",
]


def effective_rank(
    sigma: Float[Tensor, "*batch r"],
    *,
    measure: Measure = "entropy",
    kept: int | Int[Tensor, "*#batch"] | None = None,
) -> Float64[Tensor, "*batch"]:
    """Effective rank of the spectrum sigma_1 >= ... >= sigma_r >= 0.

        entropy          exp(-sum p_i log p_i), p_i = sigma_i / sum_j sigma_j (Roy and Vetterli,
                         The effective rank, EUSIPCO 2007)
        entropy_squared  the same with p_i = sigma_i^2 / sum_j sigma_j^2
        stable           sum sigma_i^2 / sigma_1^2 = ||.||_F^2 / ||.||_2^2
        participation    (sum sigma_i^2)^2 / sum sigma_i^4
        energy90         the smallest k with sum_{i<=k} sigma_i^2 >= 0.90 sum sigma_i^2; likewise
                         energy95 and energy99
        numerical        the number of sigma_i > 1e-13 sigma_1

    Exact zeros contribute nothing to any of them, and a spectrum of zeros has effective rank 0.
    A spectrum with a value that is not finite has none: nan.

    Args:
        sigma: singular values (..., r), descending.
        measure: one of the names above.
        kept: how many rank directions the mask kept (...): values past it are rounding errors
            and count as zeros.

    Returns:
        (...) in float64.

    Raises:
        ValueError: if the measure is unknown.

    >>> effective_rank(torch.tensor([2.0, 2.0, 0.0]))
    tensor(2., dtype=torch.float64)
    >>> effective_rank(torch.tensor([2.0, 1.0]), measure="stable")
    tensor(1.2500, dtype=torch.float64)
    """
    if measure not in _MEASURES:
        raise ValueError(f"measure must be one of {', '.join(_MEASURES)}, not {measure!r}")
    sigma = sigma.to(torch.float64)
    if kept is not None:
        count = torch.as_tensor(kept, device=sigma.device)[..., None]
        sigma = torch.where(torch.arange(sigma.shape[-1], device=sigma.device) < count, sigma, 0.0)
    largest = sigma.amax(-1, keepdim=True)
    normalized = sigma / torch.where(largest > 0, largest, 1.0)
    rank = torch.where(largest[..., 0] > 0, _MEASURES[measure](normalized), 0.0)
    return torch.where(sigma.isfinite().all(-1), rank, torch.nan)


def nuclear_norm(sigma: Float[Tensor, "*batch r"]) -> Float64[Tensor, "*batch"]:
    """The nuclear norm, sum sigma_i, of a matrix with singular values sigma (..., r)."""
    return sigma.to(torch.float64).sum(-1)


def _entropy(weights: Tensor) -> Tensor:
    total = weights.sum(-1, keepdim=True)
    entropies: Tensor = torch.special.entr(weights / torch.where(total > 0, total, 1.0))
    return entropies.sum(-1).exp()


def _participation(sigma: Tensor) -> Tensor:
    fourth = (sigma**4).sum(-1)
    return (sigma**2).sum(-1) ** 2 / torch.where(fourth > 0, fourth, 1.0)


def _energy(fraction: float) -> Callable[[Tensor], Tensor]:
    def energy(sigma: Tensor) -> Tensor:
        cumulative = (sigma**2).cumsum(-1)
        # The slack keeps ties, nine of ten equal values at 90 %, from being decided by rounding.
        goal = fraction * cumulative[..., -1:] * (1 - sigma.shape[-1] * EPS)
        return 1.0 + (cumulative < goal).sum(-1).to(torch.float64)

    return energy


_MEASURES: dict[str, Callable[[Tensor], Tensor]] = {
    "entropy": _entropy,
    "entropy_squared": lambda sigma: _entropy(sigma**2),
    "stable": lambda sigma: (sigma**2).sum(-1),  # sigma_1 = 1
    "participation": _participation,
    "energy90": _energy(0.90),
    "energy95": _energy(0.95),
    "energy99": _energy(0.99),
    "numerical": lambda sigma: (sigma > RANK_TOLERANCE).sum(-1).to(torch.float64),
}
