"""What the predictors score on test examples, as they are and at the temperature of validation.

A temperature T divides log-probabilities, which are then normalized again. An ensemble is first
averaged, and then has one temperature. Each predictor has its own, the one with the lowest loss on
validation examples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from analyses.ensemble_vs_single.predictors import Prediction, Predictor
from subspace_lab.calibration import TEMPERATURES, Calibration, best_temperature, loss_at
from subspace_lab.stats.intervals import ratio_interval
from subspace_lab.tasks.examples import Example

Predict = Callable[[Sequence[Example]], Iterator[Prediction]]

PREDICTOR = ["predictor", "masks", "scale", "draw"]
COLUMNS = [
    *PREDICTOR, "loss", "accuracy", "jensen_gap", "ece", "brier", "oracle_temperature",
    "oracle_loss", "temperature", "calibrated_loss", "calibrated_ece", "calibrated_brier",
    "difference", "difference_low", "difference_high",
]  # fmt: skip


class Tally:
    """Sums over what one predictor says of examples.

    Args:
        examples: how many there are.
        place: of the validated temperature among TEMPERATURES; None: there is none.

    Attributes:
        nats: of each example at all TEMPERATURES.
        tokens: of each example's response.
    """

    def __init__(self, examples: int, place: int | None) -> None:
        self._calibration = Calibration(place)
        self.nats = torch.zeros(examples, len(TEMPERATURES), dtype=torch.float64)
        self.tokens = torch.zeros(examples, dtype=torch.float64)
        self._exact, self._jensen_gap = 0, 0.0

    def add(self, prediction: Prediction) -> None:
        """Add the predictions of a batch."""
        batch = prediction.batch
        by_token = self._calibration.add(prediction.log_probabilities, batch.targets)
        self.nats.index_add_(0, torch.tensor(batch.indices)[batch.rows.cpu()], by_token)
        scores = batch.scores(prediction.log_probabilities)
        self.tokens[batch.indices] = scores.tokens.double()
        self._exact += int(scores.exact.sum())
        self._jensen_gap += prediction.jensen_gap

    def scores(self) -> dict[str, float]:
        """Give the columns that need no other predictor."""
        return {
            "loss": loss_at(TEMPERATURES.index(1.0), self.nats, self.tokens),
            "accuracy": self._exact / len(self.tokens),
            "jensen_gap": self._jensen_gap / float(self.tokens.sum()),
            **self._calibration.summary(),
        }

    @property
    def calibrated_nats(self) -> Tensor:
        """Nats of each example at the validated temperature; nan without one."""
        if self._calibration.place is None:
            return torch.full_like(self.tokens, torch.nan)
        return self.nats[:, self._calibration.place]


def score_predictors(
    predict: Predict, examples: Sequence[Example], validation: Sequence[Example]
) -> pd.DataFrame:
    """Score every predictor, which `predict` gives the predictions of, batch by batch.

    Without validation examples, which choose the temperatures, columns that need one are nan.

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
    validated = _tally(predict(validation), len(validation), {}) if validation else {}
    places = {predictor: best_temperature(tally.nats) for predictor, tally in validated.items()}
    tallies = _tally(predict(examples), len(examples), places)
    full = next(tally for one, tally in tallies.items() if one.name == "full")
    rows = [
        {**_columns(one), **tally.scores(), **_difference(tally.calibrated_nats, full)}
        for one, tally in tallies.items()
    ]
    single = pd.DataFrame(row for row in rows if row["predictor"] == "single")
    nats = [tally.calibrated_nats for one, tally in tallies.items() if one.name == "single"]
    rows.append(
        {
            **single.mean(numeric_only=True),
            **_difference(torch.stack(nats).mean(0), full),
            **_columns(Predictor("singles", 1, 1.0, -1)),
        }
    )
    return pd.DataFrame(rows, columns=COLUMNS).assign(
        examples=len(examples), validation_examples=len(validation)
    )


def _tally(
    predictions: Iterable[Prediction], examples: int, places: Mapping[Predictor, int]
) -> dict[Predictor, Tally]:
    tallies: dict[Predictor, Tally] = {}
    for one in predictions:
        if one.predictor not in tallies:
            tallies[one.predictor] = Tally(examples, places.get(one.predictor))
        tallies[one.predictor].add(one)
    return tallies


def _columns(predictor: Predictor) -> dict[str, Any]:
    return dict(zip(PREDICTOR, predictor, strict=True))


def _difference(nats: Tensor, full: Tally) -> dict[str, Any]:
    """Pair nats by example with those of the full update, both at their validated temperatures."""
    interval = ratio_interval(nats - full.calibrated_nats, full.tokens)
    ends = {"difference_low": interval.low, "difference_high": interval.high}
    return {"difference": interval.estimate, **ends}
