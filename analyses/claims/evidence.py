"""What a set of runs shows about the paper's claims, in numbers with their sample sizes."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean
from typing import Literal

import pandas as pd

from analyses.claims.differences import Difference, Measurement, own_rate_gains
from analyses.comparisons.pairing import repetitions
from analyses.mask_theory.against_lora import find_lora
from analyses.mask_theory.prediction import Prediction
from subspace_lab.configurations import label_configurations
from subspace_lab.runs.core_batches import CoreBatch
from subspace_lab.runs.run import Run

Verdict = Literal["supported", "supported in part", "contradicted", "undecided", "not tested"]

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
    return Finding("not tested", f"This needs {text}.")


@dataclass(frozen=True)
class Evidence:
    """Runs, and the table of `mask_theory` about them.

    Attributes:
        runs: all runs.
        table: what predictions were compared with.
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
        """List the runs of a granularity (None: any) that were trained as they say.

        Those whose law the theory does not cover are left out.
        """
        return [
            run
            for run in self.runs
            if run.mask_law is not None
            and run.mask_law.plain
            and run.name not in self.excluded
            and granularity in (None, run.mask_law.granularity)
        ]

    @property
    def lora(self) -> list[Run]:
        """The runs of plain LoRA that were trained as they say."""
        trained = (run for run in self.runs if run.name not in self.excluded)
        return [run for run in trained if run.config.get("method") == "lora"]

    def rows(self, prediction: Prediction, runs: Sequence[Run]) -> pd.DataFrame:
        """Give the rows of a prediction about some runs."""
        of_runs = self.table["run"].isin([run.name for run in runs])
        return self.table[of_runs & (self.table["prediction"] == prediction.name)]

    def measured(self, prediction: Prediction, runs: Sequence[Run]) -> pd.Series[float]:
        """Give what was measured of a prediction in some runs."""
        return self.rows(prediction, runs)["measured"]

    def quote(self, prediction: Prediction, runs: Sequence[Run]) -> str:
        """Quote measured numbers with their sample sizes, `NAME: 0.51 (n = 6,400); ...`.

        Runs of one configuration are quoted together, from the lowest to the highest number.
        """
        rows = self.rows(prediction, runs)
        labels = label_configurations({run.name: run.config for run in runs})
        texts = []
        for label, alike in rows.groupby(rows["run"].astype(str).map(labels), sort=False):
            names = list(alike["run"].unique())
            who = names[0] if len(names) == 1 else f"{len(names)} runs"
            if len(names) > 1 and len(set(labels.values())) > 1:
                who = f"{label} ({who})"
            each = " each" * (len(alike) > 1)
            numbers = range_of(alike["measured"], ".3g")
            texts.append(f"{who}: {numbers} (n = {range_of(alike['samples'], ',')}{each})")
        return "; ".join(texts)

    def against_lora(
        self, measure: Callable[[Run], Measurement | None], *, quantity: str
    ) -> list[Difference]:
        """Compare each masked configuration with the LoRA runs that differ in the mask only.

        Masked runs that differ in their mask seed alone share a LoRA run: they are one repetition,
        which has the mean of their differences.

        Args:
            measure: of a run; None where it was not measured.
            quantity: what it is, with its unit.
        """
        masked = {run.name: run for run in self.masked()}
        labels = label_configurations({name: run.config for name, run in masked.items()})
        pairs = [(run, lora) for run in masked.values() if (lora := find_lora(run, self.lora))]
        seeds = repetitions([run for pair in pairs for run in pair])
        differences: dict[tuple[str, str], dict[Hashable, list[float]]] = {}
        for run, lora in pairs:
            of_run, of_lora = measure(run), measure(lora)
            if of_run and of_lora and of_run.conditions == of_lora.conditions:
                by_seed = differences.setdefault((labels[run.name], of_run.conditions), {})
                by_seed.setdefault(seeds[run], []).append(of_run.value - of_lora.value)
        return [
            Difference(
                label=label if len(differences) > 1 else "masked",
                quantity=quantity,
                # Rounded, so that equal accuracies differ by zero and not by a rounding error.
                by_seed={seed: round(fmean(values), 12) for seed, values in by_seed.items()},
                conditions=conditions,
                config=next(run.config for name, run in masked.items() if labels[name] == label),
            )
            for (label, conditions), by_seed in differences.items()
        ]

    @cached_property
    def gains(self) -> list[Difference]:
        """The gain in exact match over LoRA of each masked configuration, at its learning rate."""
        return self.against_lora(_score, quantity="exact match")

    @cached_property
    def own_rate_gains(self) -> list[Difference]:
        """The gain over LoRA with each method at the rate that validation examples choose."""
        return own_rate_gains(self.masked(), self.lora)

    @cached_property
    def gains_at_loras_rate(self) -> list[Difference]:
        """The same with both at the rate that validation examples choose for LoRA."""
        return own_rate_gains(self.masked(), self.lora, at_loras=True)


def last_cores(run: Run) -> list[CoreBatch]:
    """Read the cores after the last step; none if none were recorded, or some are not finite."""
    if not run.recorded or not run.steps or run.steps[-1] == 0:
        return []
    batches = list(run.cores(steps=[run.steps[-1]]))
    return batches if all(batch.finite.all() for batch in batches) else []


def range_of(values: pd.Series[float], form: str) -> str:
    """Write the lowest and the highest of some numbers, once where they look alike."""
    low, high = f"{values.min():{form}}", f"{values.max():{form}}"
    return low if low == high else f"{low} to {high}"


def _score(run: Run) -> Measurement | None:
    """Exact match after the last step; None where it was not evaluated."""
    last = run.metrics.iloc[-1]
    if last["step"] == 0 or pd.isna(last.get("eval_exact_match")):
        return None
    examples = int(last["eval_examples"])
    return Measurement(
        float(last["eval_exact_match"]),
        f"{examples} {run.evaluated_split} example{'s' * (examples != 1)}",
    )
