"""Every mask of r gates with its probability: the exact route to an expectation over masks.

The cost is 2^r, so this is for small r: for tests, and for a prediction without sampling error.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from subspace_lab.theory._checks import check_keep_prob

LARGEST = 20


def all_masks(gates: int) -> Bool[Tensor, "masks gates"]:
    """All 2^gates masks, True = kept, in binary order (gate 0 is the lowest bit).

    Raises:
        ValueError: `gates` is negative or above 20 (a million masks).

    >>> all_masks(2).int().tolist()
    [[0, 0], [1, 0], [0, 1], [1, 1]]
    """
    if not 0 <= gates <= LARGEST:
        raise ValueError(f"enumeration takes 0 to {LARGEST} gates, not {gates}")
    return (torch.arange(2**gates)[:, None] >> torch.arange(gates)) % 2 == 1


def mask_probabilities(
    masks: Bool[Tensor, "*batch gates"], *, keep_prob: float
) -> Float[Tensor, "*batch"]:
    """P(d) = q^|M| (1 - q)^(r - |M|), independent Bernoulli(q) gates, q = keep_prob.

    >>> mask_probabilities(all_masks(2), keep_prob=0.25).tolist()
    [0.5625, 0.1875, 0.1875, 0.0625]
    """
    check_keep_prob(keep_prob)
    gates = masks.to(torch.float64)
    return (gates * keep_prob + (1 - gates) * (1 - keep_prob)).prod(-1)
