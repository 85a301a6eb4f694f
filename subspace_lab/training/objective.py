"""What an optimizer step descends: a weighted sum of losses under chosen gates.

With the gates g of all adapted layers, L(g) the loss of a micro-batch, and masks d whose gates g(d)
have mean 1 (rescaled masks) and variance λ = (1 - q) / q, q = keep_prob, each objective separates
another part of what masks do:

    loss            1/K sum_k L(g(d_k)): the masked loss; K masks a step have 1/K of its noise and
                    the same mean
    noise-only      L(1) + (L(g(d1)) - L(g(d2))) / sqrt(2): the mean gradient is that of L(1), the
                    covariance that of a masked gradient; noise without a regularizer
    penalty         L(1) + λ R, R of `penalty`: a regularizer without noise, exact for one linear
                    layer under a squared loss (Cavazza et al. 2018; Mianjy, Arora and Vidal 2018)
    second-order    L(1) + (λ/2) sum_i d²L/dg_i²: the masked loss to second order in the gates of
                    any network (Wager, Wang and Liang 2013; Wei, Kakade and Ma 2020)

The second order is estimated without second derivatives, so that its gradient costs three backward
passes and any attention kernel will do: with a Rademacher vector e over all gates, drawn anew in
each step,

    e^T H e = (L(1 + h e) - 2 L(1) + L(1 - h e)) / h² + O(h²),        E e^T H e = tr H.

The masks of step t are the law's masks number (t - 1) K + 1, ..., t K, the same in all
micro-batches and processes; those of samples and tokens are drawn anew in every forward pass.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt
from typing import Literal

import torch
from torch import Tensor

from subspace_lab.adapters.mask import RankMask
from subspace_lab.theory.mask_law import Bernoulli

Kind = Literal["loss", "noise-only", "penalty", "second-order"]

DISTANCE = 0.1
"""h of the second order: its error is O(h²), and rounding enters as epsilon / h²."""


@dataclass(frozen=True)
class Term:
    """A weighted loss under gates.

    Attributes:
        weight: what the loss is multiplied by.
        gates: module name to (r,); None: drawn by the law in the forward pass.
        reported: its share in the loss that is logged.
    """

    weight: float
    gates: Mapping[str, Tensor] | None
    reported: float = 0.0


@dataclass(frozen=True)
class Objective:
    """The objective of a run.

    Attributes:
        mask: the rank mask whose law it is about.
        kind: which one.
        masks_per_step: K of the masked loss.
        strength: λ of `penalty` and `second-order`.
    """

    mask: RankMask
    kind: Kind = "loss"
    masks_per_step: int = 1
    strength: float = 1.0

    def terms(self, step: int) -> list[Term]:
        """Give the terms of an optimizer step, from 1; those of `penalty` lack the penalty."""
        if self.kind == "loss":
            return self._averaged(step)
        if self.kind == "noise-only":
            return self._noise_only(step)
        if self.kind == "second-order":
            return self._second_order(step)
        return [Term(1.0, self._equal(1.0), reported=1.0)]

    def _averaged(self, step: int) -> list[Term]:
        masks = self.masks_per_step
        numbers = range((step - 1) * masks + 1, step * masks + 1)
        return [Term(1 / masks, self._drawn(number), reported=1 / masks) for number in numbers]

    def _noise_only(self, step: int) -> list[Term]:
        return [
            Term(1.0, self._equal(1.0), reported=1.0),
            Term(sqrt(0.5), self._drawn(2 * step - 1)),
            Term(-sqrt(0.5), self._drawn(2 * step)),
        ]

    def _second_order(self, step: int) -> list[Term]:
        law = Bernoulli(0.5, seed=self.mask.law.seed)
        curvature = self.strength / (2 * DISTANCE**2)
        signs = {
            name: 2 * torch.from_numpy(law.step_mask(step, name, rank)).float() - 1
            for name, rank in self.mask.ranks.items()
        }
        return [
            Term(1.0 - 2 * curvature, self._equal(1.0), reported=1.0),
            Term(curvature, {name: 1 + DISTANCE * sign for name, sign in signs.items()}),
            Term(curvature, {name: 1 - DISTANCE * sign for name, sign in signs.items()}),
        ]

    def _equal(self, gate: float) -> dict[str, Tensor]:
        """Give gates of one size: a diagonal, or a multiple of the identity."""
        ones = {name: torch.ones(rank) for name, rank in self.mask.ranks.items()}
        diagonal = self.mask.law.diagonal
        return {name: gate * (one if diagonal else one.diag()) for name, one in ones.items()}

    def _drawn(self, number: int) -> dict[str, Tensor] | None:
        """Give the gates of the law's mask of a number, where the law has one mask per step."""
        law = self.mask.law
        if law.granularity != "step":
            return None
        return {n: torch.from_numpy(gates).float() for n, gates in self.mask.gates(number).items()}


def default_strength(keep_prob: float) -> float:
    """Give λ = (1 - q) / q, the variance of a rescaled gate, q = keep_prob.

    >>> default_strength(0.5), default_strength(0.25)
    (1.0, 3.0)
    """
    return (1 - keep_prob) / keep_prob
