"""How well probabilities match frequencies, and how much of a loss is overconfidence.

Dividing logits by a temperature T > 0 changes no argmax. Temperature scaling chooses T by the loss
on validation examples (Guo et al. 2017, arXiv 1706.04599, section 4.2); what it takes off the loss
on test examples was overconfidence, which needed no other model.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

PER_OCTAVE = 8
TEMPERATURES = tuple(2 ** (power / PER_OCTAVE) for power in range(-16, 25))
"""Those that are tried: from 1/4 to 8, a factor of 1.09 apart."""

BINS = 15


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
    logits = logits - logits.amax(-1, keepdim=True)
    chosen = logits.gather(-1, targets[:, None]).squeeze(-1)
    nats = logits.new_empty(len(logits), len(TEMPERATURES))
    for place in range(len(TEMPERATURES) - PER_OCTAVE, len(TEMPERATURES)):
        powers = (logits / TEMPERATURES[place]).exp_()
        for colder in range(place, -1, -PER_OCTAVE):
            nats[:, colder] = powers.sum(-1).log_() - chosen / TEMPERATURES[colder]
            powers.square_()  # exp(z / T)^2 = exp(z / (T / 2)), in a third of the time of exp
    return nats


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


@dataclass
class Reliability:
    """Calibration error and Brier score of predictions that come batch by batch.

    Attributes:
        bins: of each of BINS equal-width bins of confidence, (k / BINS, (k + 1) / BINS]: how many
            predictions, the sum of their confidences, how many were right.
        squares: sum of the Brier scores.
    """

    bins: Float64[Tensor, "bins 3"] = field(
        default_factory=lambda: torch.zeros(BINS, 3, dtype=torch.float64)
    )
    squares: float = 0.0

    def add(
        self,
        log_probabilities: Float[Tensor, "predictions classes"],
        targets: Int[Tensor, " predictions"],
    ) -> None:
        """Add predictions, given the right classes."""
        probabilities = log_probabilities.exp()
        confidences, classes = probabilities.max(-1)
        of_target = probabilities.gather(-1, targets[:, None]).squeeze(-1)
        squares = probabilities.square().sum(-1) - 2 * of_target + 1
        self.squares += float(squares.double().sum())
        values = torch.stack([torch.ones_like(confidences), confidences, classes == targets], -1)
        places = (confidences * BINS).ceil().long().clamp(1, BINS) - 1
        self.bins.index_add_(0, places.cpu(), values.double().cpu())

    @property
    def ece(self) -> float:
        """The expected calibration error, sum over bins of (n_b / n) |accuracy_b - confidence_b|.

        Of the class predicted with the highest probability, its confidence (Guo et al. 2017,
        equation 3).
        """
        count, confidence, right = self.bins.unbind(-1)
        return float((right - confidence).abs().sum() / count.sum())

    @property
    def brier(self) -> float:
        """The Brier score, mean over predictions of sum_c (p_c - [c = y])^2, from 0 to 2.

        Brier (1950), Monthly Weather Review 78, equation 2.
        """
        return self.squares / float(self.bins[:, 0].sum())


@dataclass
class Calibration:
    """Reliability of predictions that come batch by batch, and their loss at all temperatures.

    Attributes:
        place: of the validated temperature among TEMPERATURES; None: none was chosen.
        reliability: calibration error and Brier score.
        calibrated: the same at the validated temperature.
        nats: summed over predictions, at each of TEMPERATURES.
    """

    place: int | None = None
    reliability: Reliability = field(default_factory=Reliability)
    calibrated: Reliability = field(default_factory=Reliability)
    nats: Float64[Tensor, " temperatures"] = field(
        default_factory=lambda: torch.zeros(len(TEMPERATURES), dtype=torch.float64)
    )

    def add(
        self,
        log_probabilities: Float[Tensor, "predictions classes"],
        targets: Int[Tensor, " predictions"],
    ) -> Float64[Tensor, "predictions temperatures"]:
        """Add predictions, given the right classes, and give the nats of each."""
        self.reliability.add(log_probabilities, targets)
        if self.place is not None:
            softened = (log_probabilities / TEMPERATURES[self.place]).log_softmax(-1)
            self.calibrated.add(softened, targets)
        nats = nats_at_temperatures(log_probabilities, targets).double().cpu()
        self.nats += nats.sum(0)
        return nats

    def summary(self) -> dict[str, float]:
        """Give `ece`, `brier`, `oracle_temperature` and `oracle_loss`; empty of no predictions.

        The oracle temperature has the lowest loss on these predictions themselves, in nats each.
        With a validated one also `temperature`, `calibrated_loss`, `calibrated_ece` and
        `calibrated_brier`.
        """
        count = self.reliability.bins[:, 0].sum()
        if not count:
            return {}
        oracle = best_temperature(self.nats)
        summary = {
            "ece": self.reliability.ece,
            "brier": self.reliability.brier,
            "oracle_temperature": TEMPERATURES[oracle],
            "oracle_loss": loss_at(oracle, self.nats, count),
        }
        if self.place is None:
            return summary
        return summary | {
            "temperature": TEMPERATURES[self.place],
            "calibrated_loss": loss_at(self.place, self.nats, count),
            "calibrated_ece": self.calibrated.ece,
            "calibrated_brier": self.calibrated.brier,
        }
