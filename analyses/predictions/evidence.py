"""What a set of runs has to say about the paper's claims, in numbers with their sample sizes."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import pandas as pd

    from subspace_lab.runs.run import Run
    from subspace_lab.stats.paired import PairedDifference

Verdict = Literal["supported", "supported in part", "contradicted", "undecided", "not tested"]

LEVEL = 0.05  # probability that any of a claim's comparisons is called a difference by chance
ABOUT_TRAINING = ("training", "masks drawn")


@dataclass(frozen=True)
class Finding:
    """What these runs show of one claim.

    Attributes:
        verdict: never more than the runs show.
        shown: the measured numbers; of an untested claim, what it would need.
    """

    verdict: Verdict
    shown: str


def needs(text: str) -> Finding:
    """Say that a claim was not tested, and what that would need."""
    return Finding("not tested", f"Not tested by these runs: needs {text}.")


@dataclass(frozen=True)
class Measurement:
    """A number about a run.

    Attributes:
        value: the number.
        conditions: how it was measured; only numbers measured alike are compared.
    """

    value: float
    conditions: str


@dataclass(frozen=True)
class Comparison:
    """Masked runs minus LoRA runs of the same configuration, seed by seed.

    Attributes:
        label: the masked configuration.
        quantity: what is compared.
        by_seed: difference by seed.
        conditions: how both were measured.
        config: a masked run's configuration.
    """

    label: str
    quantity: str
    by_seed: Mapping[Hashable, float]
    conditions: str
    config: Mapping[str, Any]

    @cached_property
    def difference(self) -> PairedDifference:
        """The mean over seeds, with interval and test."""
        from subspace_lab.stats.paired import paired_difference

        return paired_difference(dict.fromkeys(self.by_seed, 0.0), self.by_seed)

    @property
    def estimate(self) -> float:
        """The mean over seeds."""
        return float(self.difference.difference.estimate)

    @property
    def p_value(self) -> float:
        """Of the sign-flip test, not corrected for other comparisons."""
        return self.difference.test.p_value

    @property
    def seeds(self) -> int:
        """How many seeds were paired."""
        return len(self.by_seed)

    def __str__(self) -> str:
        """Give the difference with its evidence."""
        interval = self.difference.difference
        text = f"{self.label}: {self.estimate:+.3f} {self.quantity} against LoRA ("
        if self.seeds > 1:
            text += f"95 % interval {interval.low:+.3f} to {interval.high:+.3f}, "
            text += f"p = {self.p_value:.2g}, "
        return text + f"{self.seeds} paired seed{'s' * (self.seeds > 1)}, {self.conditions})"


def seeds_needed(comparisons: int) -> int:
    """Smallest number of seeds at which Holm's correction lets a sign-flip test reach the level.

    Of n seeds the smallest p-value is 2 / 2^n, and it is multiplied by the number of comparisons.

    >>> [seeds_needed(k) for k in (1, 2, 4, 8)]
    [6, 7, 8, 9]
    """
    return math.ceil(1 + math.log2(max(comparisons, 1) / LEVEL))


@dataclass(frozen=True)
class Evidence:
    """Runs, and the table of `mask_theory` about them.

    Attributes:
        runs: all runs.
        table: their rows.
    """

    runs: Sequence[Run]
    table: pd.DataFrame

    @cached_property
    def excluded(self) -> dict[str, list[str]]:
        """Runs that were not trained as they say, with the predictions that show it.

        Only predictions about the training and its masks count, where the table tells them apart.
        """
        rows = self.table[~self.table["agrees"].fillna(True)]
        if "tests" in rows:
            rows = rows[rows["tests"].isin(ABOUT_TRAINING)]
        return {
            str(run): [
                f"{row.prediction}: predicted {row.predicted:.4g}, measured {row.measured:.4g}"
                for row in of_run.itertuples()
            ]
            for run, of_run in rows.groupby("run", observed=True, sort=False)
        }

    def masked(self, *, granularity: str | None = None) -> list[Run]:
        """List the masked runs of a granularity (None: any) that were trained as they say."""
        return [
            run
            for run in self.runs
            if run.mask_law is not None
            and run.name not in self.excluded
            and granularity in (None, run.mask_law.granularity)
        ]

    @property
    def lora(self) -> list[Run]:
        """The runs of plain LoRA that were trained as they say."""
        return [
            run
            for run in self.runs
            if run.config.get("method") == "lora" and run.name not in self.excluded
        ]

    def values(self, prediction: str, runs: Sequence[Run]) -> pd.DataFrame:
        """Give the rows of a prediction about some runs."""
        names = [run.name for run in runs]
        chosen = (self.table["prediction"] == prediction) & self.table["run"].isin(names)
        return self.table[chosen]

    def quote(self, prediction: str, runs: Sequence[Run]) -> str:
        """Quote measured numbers with their sample sizes, `NAME 0.51 (n = 6,400), ...`."""
        return ", ".join(
            f"{row.run} {row.measured:.3g} (n = {row.samples:,})"
            for row in self.values(prediction, runs).itertuples()
        )

    def against_lora(
        self, measure: Callable[[Run], Measurement | None], *, quantity: str
    ) -> list[Comparison]:
        """Compare each masked configuration with the LoRA runs that differ in the mask only.

        Args:
            measure: of a run; None where it was not measured.
            quantity: what it is, with its unit.
        """
        from analyses.predictions.against_lora import find_lora
        from subspace_lab.stats.seeds import label_configurations

        masked = {run.name: run for run in self.masked()}
        labels = label_configurations({name: run.config for name, run in masked.items()})
        found: dict[tuple[str, str], dict[Hashable, float]] = {}
        for name, run in masked.items():
            lora = find_lora(run, self.lora)
            pair = None if lora is None else (measure(run), measure(lora))
            if pair is None or pair[0] is None or pair[1] is None:
                continue
            if pair[0].conditions == pair[1].conditions:
                # Rounded, so that equal accuracies differ by zero and not by a rounding error.
                difference = round(pair[0].value - pair[1].value, 12)
                key = labels[name], pair[0].conditions
                found.setdefault(key, {})[run.config["seed"]] = difference
        return [
            Comparison(
                label=label if len(found) > 1 else "masked",
                quantity=quantity,
                by_seed=by_seed,
                conditions=conditions,
                config=next(run.config for name, run in masked.items() if labels[name] == label),
            )
            for (label, conditions), by_seed in found.items()
        ]

    @cached_property
    def gains(self) -> list[Comparison]:
        """The gain in exact match over LoRA of each masked configuration."""
        return self.against_lora(_score, quantity="exact match")


def kind_of(config: Mapping[str, Any], *, but: Sequence[str]) -> str:
    """Key of a configuration without its seed, what was recorded, and the named settings."""
    from subspace_lab.stats.seeds import SEED_AND_RECORDING

    left = {k: v for k, v in config.items() if k not in (*SEED_AND_RECORDING, *but)}
    return json.dumps(left, sort_keys=True, default=str)


def _score(run: Run) -> Measurement | None:
    """Exact match after the last step; None where it was not evaluated."""
    import pandas as pd

    last = run.metrics.iloc[-1]
    if last["step"] == 0 or pd.isna(last.get("eval_exact_match")):
        return None
    examples = int(last["eval_examples"])
    return Measurement(
        float(last["eval_exact_match"]),
        f"{examples} {run.evaluated_split} example{'s' * (examples != 1)}",
    )
