"""How much of a loss is overconfidence: the loss of softened predictions.

Dividing logits by a temperature T > 0 changes no argmax. Temperature scaling chooses T by the loss
on validation examples (Guo et al. 2017, arXiv 1706.04599, section 4.2); what it takes off the loss
on test examples was overconfidence, which needed no other model.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

TEMPERATURES = tuple(2 ** (power / 8) for power in range(-16, 25))
"""Those that are tried: from 1/4 to 8, a factor of 1.09 apart."""


def nats_at_temperatures(
    logits: Float[Tensor, "tokens vocabulary"], targets: Int[Tensor, " tokens"]
) -> Float[Tensor, "tokens temperatures"]:
    """Compute -log softmax(z / T)_y of each token for all TEMPERATURES, in float32 or better.

    Args:
        logits: z.
        targets: y.

    >>> nats = nats_at_temperatures(torch.zeros(1, 4), torch.tensor([2]))
    >>> nats.exp().unique()
    tensor([4.])
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    chosen = logits.gather(-1, targets[:, None]).squeeze(-1)
    each = [(logits / t).logsumexp(-1) - chosen / t for t in TEMPERATURES]
    return torch.stack(each, dim=-1)


def best_temperature(nats: Float[Tensor, "*batch temperatures"]) -> int:
    """Give the place of the temperature with the lowest total loss.

    The loss is convex in 1 / T, so that the best of TEMPERATURES is a neighbor of the best of all.
    """
    return int(nats.reshape(-1, len(TEMPERATURES)).double().sum(0).argmin())


def loss_at(
    place: int, nats: Float[Tensor, "*batch temperatures"], tokens: Float64[Tensor, "*batch"]
) -> float:
    """Give the loss at a temperature, in nats per token, from sums over each example's tokens."""
    return float(nats.double()[..., place].sum() / tokens.sum())
