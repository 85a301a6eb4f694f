"""What a set of runs has to say about the paper's claims, in numbers with their sample sizes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import pandas as pd

    from subspace_lab.recording.run import Run
    from subspace_lab.stats.paired import PairedDifference

Verdict = Literal["supported", "supported in part", "contradicted", "undecided", "not tested"]

LEAST_SEEDS = 6  # fewer cannot reach p < 0.05 in a two-sided sign-flip test


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
class Gain:
    """Exact match of masked runs minus that of LoRA runs of the same configuration and seed.

    Attributes:
        label: the masked configuration.
        rank: its rank.
        difference: over the seeds, with interval and test.
        examples: rows of each evaluation.
        split: which rows they are.
    """

    label: str
    rank: int
    difference: PairedDifference
    examples: int
    split: str

    def __str__(self) -> str:
        """Give the gain with its evidence."""
        found, seeds = self.difference.difference, len(self.difference.pairs)
        text = f"{self.label}: {found.estimate:+.3f} exact match against LoRA ("
        if seeds > 1:
            text += f"95 % interval {found.low:+.3f} to {found.high:+.3f}, "
            text += f"p = {self.difference.test.p_value:.2g}, "
        return text + f"{seeds} paired seed{'s' * (seeds > 1)}, {self.examples} {self.split} rows)"


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
    def unsound(self) -> list[Run]:
        """Runs that do not do what they say, by an exact or a sampling prediction."""
        names = set(self.table.loc[~self.table["agrees"].fillna(True), "run"])
        return [run for run in self.runs if run.name in names]

    def masked(self, *, granularity: str | None = None, rescale: bool | None = None) -> list[Run]:
        """List the sound masked runs of a granularity and rescale (None: any)."""
        return [
            run
            for run in self.runs
            if run.mask_law is not None
            and run not in self.unsound
            and granularity in (None, run.mask_law["granularity"])
            and rescale in (None, run.mask_law["rescale"])
        ]

    @property
    def lora(self) -> list[Run]:
        """The runs of plain LoRA."""
        return [run for run in self.runs if run.config.get("method") == "lora"]

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

    @cached_property
    def gains(self) -> list[Gain]:
        """Give the gain over LoRA of each masked configuration that has LoRA runs beside it."""
        from analyses.predictions.against_lora import find_lora
        from subspace_lab.stats.paired import paired_difference
        from subspace_lab.stats.seeds import label_configurations

        masked = {run.name: run for run in self.masked()}
        labels = label_configurations({name: run.config for name, run in masked.items()})
        pairs: dict[str, list[_Pair]] = {}
        for name, run in masked.items():
            lora = find_lora(run, self.lora)
            if lora is not None and (pair := _pair(run, lora)) is not None:
                pairs.setdefault(labels[name], []).append(pair)
        return [
            Gain(
                label if len(pairs) > 1 else "masked",
                found[0].rank,
                paired_difference(
                    {pair.seed: pair.plain for pair in found},
                    {pair.seed: pair.masked for pair in found},
                ),
                found[0].examples,
                found[0].split,
            )
            for label, found in pairs.items()
        ]


@dataclass(frozen=True)
class _Pair:
    """Exact match of a masked run and of its LoRA run, at their last evaluations."""

    seed: int
    rank: int
    masked: float
    plain: float
    examples: int
    split: str


def _pair(run: Run, lora: Run) -> _Pair | None:

    first, second = _score(run), _score(lora)
    if first is None or second is None:
        return None
    config, split = run.config, run.evaluated_split
    return _Pair(config["seed"], config["rank"], first[0], second[0], first[1], split)


def _score(run: Run) -> tuple[float, int] | None:
    """Exact match after the last step and its number of rows; None where it was not evaluated."""
    import pandas as pd

    last = run.metrics.iloc[-1]
    if last["step"] == 0 or pd.isna(last.get("eval_exact_match")):
        return None
    return float(last["eval_exact_match"]), int(last["eval_examples"])
