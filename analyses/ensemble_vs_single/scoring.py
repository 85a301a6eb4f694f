"""What the predictors score on test examples, as they are and at the temperature of validation.

A temperature T divides log-probabilities, which are then normalized again. An ensemble is first
averaged, and then has one temperature. Each predictor has its own, the one with the lowest loss on
validation examples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from analyses.ensemble_vs_single.predictors import Prediction, Predictor
from subspace_lab.calibration import (
    TEMPERATURES,
    Reliability,
    best_temperature,
    loss_at,
    nats_at_temperatures,
)
from subspace_lab.stats.intervals import ratio_interval
from subspace_lab.tasks.examples import Example

Predict = Callable[[Sequence[Example]], Iterator[Prediction]]

PREDICTOR = ["predictor", "masks", "scale", "draw"]
COLUMNS = [
    *PREDICTOR, "loss", "accuracy", "jensen_gap", "ece", "brier", "oracle_temperature",
    "oracle_loss", "temperature", "calibrated_loss", "calibrated_ece", "calibrated_brier",
    "difference", "difference_low", "difference_high",
]  # fmt: skip


@dataclass
class Tally:
    """Sums over what one predictor says of test examples.

    Attributes:
        examples: how many there are.
        place: of the validated temperature among TEMPERATURES; None: there is none.
        nats: of each example at all TEMPERATURES.
        tokens: of each example's response.
        exact: how many responses greedy decoding would write.
        jensen_gap: summed over tokens; nan of a predictor that is not an ensemble.
        reliability: of the token predictions.
        calibrated: the same at the validated temperature.
    """

    examples: int
    place: int | None
    nats: Tensor = field(init=False)
    tokens: Tensor = field(init=False)
    exact: int = 0
    jensen_gap: float = 0.0
    reliability: Reliability = field(default_factory=Reliability)
    calibrated: Reliability = field(default_factory=Reliability)

    def __post_init__(self) -> None:
        self.nats = torch.zeros(self.examples, len(TEMPERATURES), dtype=torch.float64)
        self.tokens = torch.zeros(self.examples, dtype=torch.float64)

    def add(self, prediction: Prediction) -> None:
        """Add the predictions of a batch."""
        batch, log_probabilities = prediction.batch, prediction.log_probabilities
        by_token = nats_at_temperatures(log_probabilities, batch.targets).double().cpu()
        example = torch.tensor(batch.indices)[batch.rows.cpu()]
        self.nats.index_add_(0, example, by_token)
        self.tokens.index_add_(0, example, torch.ones(len(example), dtype=torch.float64))
        self.exact += int(batch.scores(log_probabilities).exact.sum())
        self.jensen_gap += prediction.jensen_gap
        self.reliability.add(log_probabilities, batch.targets)
        if self.place is not None:
            softened = (log_probabilities / TEMPERATURES[self.place]).log_softmax(-1)
            self.calibrated.add(softened, batch.targets)

    def scores(self) -> dict[str, float]:
        """Give the columns that need no other predictor."""
        oracle = best_temperature(self.nats)
        scores = {
            "loss": loss_at(TEMPERATURES.index(1.0), self.nats, self.tokens),
            "accuracy": self.exact / self.examples,
            "jensen_gap": self.jensen_gap / float(self.tokens.sum()),
            "ece": self.reliability.ece,
            "brier": self.reliability.brier,
            "oracle_temperature": TEMPERATURES[oracle],
            "oracle_loss": loss_at(oracle, self.nats, self.tokens),
        }
        if self.place is None:
            return scores
        return scores | {
            "temperature": TEMPERATURES[self.place],
            "calibrated_loss": loss_at(self.place, self.nats, self.tokens),
            "calibrated_ece": self.calibrated.ece,
            "calibrated_brier": self.calibrated.brier,
        }

    @property
    def calibrated_nats(self) -> Tensor:
        """Nats of each example at the validated temperature; nan without one."""
        if self.place is None:
            return torch.full_like(self.tokens, torch.nan)
        return self.nats[:, self.place]


def score_predictors(
    predict: Predict, examples: Sequence[Example], validation: Sequence[Example]
) -> pd.DataFrame:
    """Score every predictor by teacher forcing.

    Args:
        predict: gives the predictions of all predictors for examples, batch by batch.
        examples: what is scored.
        validation: what chooses the temperatures; empty: none is chosen, and the columns that need
            one are nan.

    Returns:
        A row for each predictor, and one, `singles`, with the means over the single masks:
        `predictor`, `masks` (how many are in it), `scale` (of B A; nan for the base of PiSSA and
        MiLoRA), `draw` (which mask, else -1), `loss` (nats per response token), `accuracy`,
        `jensen_gap` (nats per token, of the ensembles: mean loss of single masks minus that of the
        geometric one, from the predictions alone), `ece` and `brier` (of the token predictions, see
        `calibration.Reliability`), `oracle_temperature` and `oracle_loss` (the lowest over the
        temperatures, on the examples that are scored), `temperature`, `calibrated_loss`,
        `calibrated_ece` and `calibrated_brier` (at the temperature of the lowest loss on validation
        examples), `difference` of the calibrated loss to the full update's with its 95 % interval
        over examples, `difference_low` and `difference_high`, `examples`, `validation_examples`.
    """
    places = _temperatures(predict(validation)) if validation else {}
    tallies: dict[Predictor, Tally] = {}
    for one in predict(examples):
        place = places.get(one.predictor)
        tallies.setdefault(one.predictor, Tally(len(examples), place)).add(one)
    full = next(tally for one, tally in tallies.items() if one.name == "full")
    rows = [
        {**_columns(one), **tally.scores(), **_difference(tally.calibrated_nats, full)}
        for one, tally in tallies.items()
    ]
    means = pd.DataFrame(row for row in rows if row["predictor"] == "single").mean(
        numeric_only=True
    )
    nats = [tally.calibrated_nats for one, tally in tallies.items() if one.name == "single"]
    difference = _difference(torch.stack(nats).mean(0), full)
    rows.append({**means, **difference, **_columns(Predictor("singles", 1, 1.0, -1))})
    return pd.DataFrame(rows, columns=COLUMNS).assign(
        examples=len(examples), validation_examples=len(validation)
    )


def _columns(predictor: Predictor) -> dict[str, Any]:
    return dict(zip(PREDICTOR, predictor, strict=True))


def _difference(nats: Tensor, full: Tally) -> dict[str, Any]:
    """Pair nats by example with those of the full update, both at their validated temperatures."""
    interval = ratio_interval(nats - full.calibrated_nats, full.tokens)
    ends = {"difference_low": interval.low, "difference_high": interval.high}
    return {"difference": interval.estimate, **ends}


def _temperatures(predictions: Iterable[Prediction]) -> dict[Predictor, int]:
    """Choose each predictor's temperature by its loss."""
    nats: dict[Predictor, Tensor] = {}
    for one in predictions:
        of_batch = nats_at_temperatures(one.log_probabilities, one.batch.targets).double().sum(0)
        nats[one.predictor] = nats.get(one.predictor, torch.zeros_like(of_batch)) + of_batch
    return {predictor: best_temperature(total) for predictor, total in nats.items()}
