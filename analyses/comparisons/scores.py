"""Scores on test examples, checked to be comparable.

They are those of `python -m subspace_lab.evaluate`; where none of the runs was evaluated by it,
those that training made of `--test_size` examples after its last step.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analyses.comparisons.configurations import repetitions
from subspace_lab import files
from subspace_lab.configurations import seeds_in_effect
from subspace_lab.errors import UserError
from subspace_lab.evaluation import records
from subspace_lab.evaluation.records import FOLDER, read_summaries, way_of_measuring
from subspace_lab.runs.run import Run

ACCURACY, LOSS, CALIBRATED = "accuracy", "loss", "calibrated_loss"
"""Measures of the answers; the last is the loss at the temperature that validation chose."""
MEASURES = (ACCURACY, LOSS, CALIBRATED)
AVERAGE = "average"
"""The mean over tasks."""
TRAINED = {ACCURACY: "exact_match", LOSS: "response_loss", CALIBRATED: "calibrated_loss"}
"""Columns of a run's metrics by measure, after `test_`."""


@dataclass(frozen=True)
class Scored:
    """A run and the summaries of its evaluations on test examples, by task."""

    run: Run
    summaries: Mapping[str, Mapping[str, Any]]

    def rows(self, task: str) -> pd.DataFrame:
        """Read the table of a task, one row per example."""
        return files.read_table(self.run.path / FOLDER / f"{task}.parquet")

    def examples(self, task: str) -> tuple[Any, ...]:
        """Identify a task's examples, in order; empty where the table does not say which they are.

        The same prompt may occur twice in a set, as two examples.
        """
        table = self.rows(task)
        if "prompt_hash" not in table:
            return ()
        return tuple(zip(table["prompt_hash"], table["gold"], strict=True))

    def count(self, task: str) -> int:
        """Count a task's examples."""
        return len(self.rows(task))

    def values(self, task: str) -> dict[str, NDArray[np.float64]]:
        """Give the values of a task's examples (N,) by measure; empty of judged conversations."""
        table = self.rows(task)
        if "correct" not in table:  # judged conversations have no right answer
            return {}
        values = {ACCURACY: table["correct"].to_numpy(dtype=float)}
        if self.summaries[task]["metric"] == "exact_match":  # else the loss is of what was chosen
            values[LOSS] = table["loss"].to_numpy(dtype=float)
        return values


class ScoredInTraining(Scored):
    """A run whose scores are those of its training: means over test examples."""

    def examples(self, task: str) -> tuple[Any, ...]:
        """Identify a task's examples: by their number, since no seed changes which they are."""
        return (self.count(task),)

    def count(self, task: str) -> int:
        """Count a task's examples."""
        return int(self.summaries[task]["examples"])

    def values(self, task: str) -> dict[str, NDArray[np.float64]]:
        """Give each measure's mean over the examples, as the one value (1,)."""
        last = self.run.metrics.iloc[-1]
        means = {measure: last.get(f"test_{column}") for measure, column in TRAINED.items()}
        return {measure: np.array([mean]) for measure, mean in means.items() if mean is not None}


def scored_groups(
    runs: Iterable[Run], *, tasks: Collection[str] | None = None
) -> list[list[Scored]]:
    """Read the scores of the runs that have any, one list per configuration.

    Runs without a configuration or without scores on test examples are excluded (`excluded_runs`
    names them). Of all tasks, or only of `tasks`.

    Raises:
        UserError: if two runs of one configuration and the same seeds were scored on one task.
    """
    scored = {one.run: one for one in _read_all(runs, tasks) if one.summaries}
    groups = [[scored[run] for run in group] for group in repetitions(scored)]
    for group in groups:
        known: dict[tuple[str, str], Run] = {}
        for run, task in ((one.run, task) for one in group for task in one.summaries):
            other = known.setdefault((task, str(seeds_in_effect(run.config))), run)
            if other is not run:
                raise UserError(
                    f"{run.path} has the configuration and seeds of {other.path}: leave one out"
                )
    return groups


def excluded_runs(runs: Iterable[Run], *, on_all_tasks: bool) -> list[str]:
    """Name the runs that have no scores, and say why and what to do.

    With `on_all_tasks` a run also needs the scores of every task that another run has.
    """
    known = _read_all(runs)
    every = {task: summary for one in known for task, summary in one.summaries.items()}
    remarks = []
    for one in known:
        missing = {task: every[task] for task in every if task not in one.summaries}
        if not repetitions([one.run]):
            remarks.append(f"{one.run.path} is not a run of subspace_lab.train")
        elif not one.summaries or (on_all_tasks and missing):
            where = f" of {', '.join(missing)}" if one.summaries else ""
            remarks.append(
                f"{one.run.path} was not evaluated on test examples{where}: run "
                f"{_command(one.run.path, missing)}"
            )
    return remarks


def _read_all(runs: Iterable[Run], tasks: Collection[str] | None = None) -> list[Scored]:
    """Read the runs' scores: of their evaluations, or where there are none, of their training."""
    scored = [Scored(run, _evaluated(run, tasks)) for run in runs]
    if any(one.summaries for one in scored):
        return scored
    return [ScoredInTraining(one.run, _of_training(one.run, tasks)) for one in scored]


def _of_training(run: Run, tasks: Collection[str] | None) -> dict[str, dict[str, Any]]:
    """Summarize what training scored on test examples after its last step, by task."""
    task = records.file_name(str(run.config.get("task", "")))
    wanted = _has_metrics(run) and (tasks is None or task in tasks)
    last = run.metrics.iloc[-1] if wanted else pd.Series(dtype=float)
    if not last.get("test_examples", 0) > 0:
        return {}
    summary = {
        "metric": "exact_match",
        "value": float(last["test_exact_match"]),
        "examples": int(last["test_examples"]),
        "step": int(last["step"]),
        "settings": {"split": "test"},
    }
    return {task: summary}


def _evaluated(run: Run, tasks: Collection[str] | None) -> dict[str, dict[str, Any]]:
    """Read the summaries of a run's evaluations on test examples, by task."""
    return {
        task: summary
        for task, summary in read_summaries(run.path).items()
        if (tasks is None or task in tasks) and summary["settings"].get("split", "test") == "test"
    }


def last_validation(run: Run) -> pd.Series[Any] | None:
    """Give the metrics of a finished run's last step, if they are of validation examples."""
    if not _has_metrics(run) or run.evaluated_split != "validation":
        return None
    evaluated = run.evaluations
    at_the_end = len(evaluated) and 0 < evaluated["step"].iloc[-1] == run.metrics["step"].iloc[-1]
    return evaluated.iloc[-1] if at_the_end else None


def _has_metrics(run: Run) -> bool:
    return run.finished and (run.path / "metrics.parquet").is_file()


def _command(run: object, summaries: Mapping[str, Mapping[str, Any]]) -> str:
    """Write the command that evaluates a run on tasks as their summaries say."""
    names = " ".join(summaries) or "TASK"
    metrics = {str(summary["metric"]) for summary in summaries.values()}
    flag = f" --metric {metrics.pop()}" if metrics in ({"exact_match"}, {"likelihood"}) else ""
    return f"python -m subspace_lab.evaluate --run {run} --tasks {names}{flag}"


def check_same_evaluation(scored: Sequence[Scored]) -> None:
    """Check that each task was evaluated alike, on the same examples, after the same step.

    Raises:
        UserError: if two runs differ in metric, settings, step or examples of a task.
    """
    for task in dict.fromkeys(task for one in scored for task in one.summaries):
        having = [one for one in scored if task in one.summaries]
        first = having[0]
        usual = way_of_measuring(first.summaries[task])
        sets: dict[tuple[Any, ...], list[Scored]] = {}
        for one in having:
            way = way_of_measuring(one.summaries[task])
            for name in way.keys() | usual.keys():
                if way.get(name) != usual.get(name):
                    raise UserError(
                        f"{task} was evaluated with {name} {usual.get(name)} in {first.run.path} "
                        f"and {way.get(name)} in {one.run.path}: evaluate both alike"
                    )
            sets.setdefault(one.examples(task), []).append(one)
        if len(sets) > 1:
            listed = "; ".join(
                f"{', '.join(str(one.run.path) for one in members)} ({len(examples)} examples)"
                for examples, members in sets.items()
            )
            raise UserError(
                f"{task} was not evaluated on the same examples in {listed}: evaluate these runs "
                f"again, each with {_command('RUN', {task: first.summaries[task]})} and the same "
                "--examples, --seed and --data_dir, if any"
            )
