"""Scores of `python -m subspace_lab.evaluate` on test examples, checked to be comparable."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from analyses.comparisons.configurations import repetitions
from subspace_lab import files
from subspace_lab.errors import UserError
from subspace_lab.evaluation.records import FOLDER, read_summaries, way_of_measuring
from subspace_lab.runs.run import Run

ACCURACY, LOSS = "accuracy", "loss"
AVERAGE = "average"
"""Measures of the answers, and the mean over tasks."""


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


def scored_groups(
    runs: Iterable[Run], *, tasks: Collection[str] | None = None
) -> list[list[Scored]]:
    """Read the scores of the runs that have any, one list per configuration.

    Args:
        runs: runs; those without a configuration or without scores on test examples are excluded
            (`excluded_runs` names them).
        tasks: only these; None: all.

    Raises:
        UserError: if two runs of one configuration and seed were scored on one task.
    """
    scored = {run: one for run in runs if (one := _read(run, tasks)).summaries}
    groups = [[scored[run] for run in group] for group in repetitions(scored)]
    for group in groups:
        known: dict[tuple[str, Any], Run] = {}
        for run, task in ((one.run, task) for one in group for task in one.summaries):
            other = known.setdefault((task, run.config["seed"]), run)
            if other is not run:
                raise UserError(
                    f"{run.path} has the configuration and seed of {other.path}: leave one out"
                )
    return groups


def excluded_runs(runs: Iterable[Run], *, on_all_tasks: bool) -> list[str]:
    """Name the runs that have no scores, and say why and what to do.

    Args:
        runs: the runs to compare.
        on_all_tasks: whether a run also needs the scores of every task that another run has.
    """
    known = [_read(run) for run in runs]
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


def _read(run: Run, tasks: Collection[str] | None = None) -> Scored:
    """Read a run's scores on test examples."""
    summaries = {
        task: summary
        for task, summary in read_summaries(run.path).items()
        if (tasks is None or task in tasks) and summary["settings"].get("split", "test") == "test"
    }
    return Scored(run, summaries)


def last_validation(run: Run) -> pd.Series[Any] | None:
    """Give the metrics of a finished run's last step, if they are of validation examples."""
    known = run.finished and (run.path / "metrics.parquet").is_file()
    if not known or run.evaluated_split != "validation":
        return None
    evaluated = run.evaluations
    at_the_end = len(evaluated) and 0 < evaluated["step"].iloc[-1] == run.metrics["step"].iloc[-1]
    return evaluated.iloc[-1] if at_the_end else None


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
