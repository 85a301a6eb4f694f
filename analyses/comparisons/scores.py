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
        _check_no_doubles(group)
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
    return Scored(
        run,
        {
            task: summary
            for task, summary in read_summaries(run.path).items()
            if (tasks is None or task in tasks)
            and summary["settings"].get("split", "test") == "test"
        },
    )


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


def _check_no_doubles(group: Sequence[Scored]) -> None:
    known: dict[tuple[str, Any], Run] = {}
    for one in group:
        for task in one.summaries:
            other = known.setdefault((task, one.run.config["seed"]), one.run)
            if other is not one.run:
                raise UserError(
                    f"{one.run.path} has the configuration and seed of {other.path}: leave one out"
                )


def check_same_evaluation(scored: Sequence[Scored]) -> None:
    """Check that each task was evaluated alike, on the same examples, after the same step.

    Raises:
        UserError: if two runs differ in metric, settings, step or examples of a task.
    """
    known: dict[str, tuple[Run, dict[str, Any]]] = {}
    for one in scored:
        for task, summary in one.summaries.items():
            way = way_of_measuring(summary)
            other, others_way = known.setdefault(task, (one.run, way))
            for name in way.keys() | others_way.keys():
                if way.get(name) != others_way.get(name):
                    raise UserError(
                        f"{task} was evaluated with {name} {others_way.get(name)} in {other.path} "
                        f"and {way.get(name)} in {one.run.path}: evaluate both alike"
                    )
    for task in known:
        _check_same_examples(task, [one for one in scored if task in one.summaries])


def _check_same_examples(task: str, scored: Sequence[Scored]) -> None:
    sets: dict[tuple[Any, ...], list[Scored]] = {}
    for one in scored:
        sets.setdefault(one.examples(task), []).append(one)
    if len(sets) > 1:
        listed = "; ".join(
            f"{', '.join(str(one.run.path) for one in members)} ({len(examples)} examples)"
            for examples, members in sets.items()
        )
        raise UserError(
            f"{task} was not evaluated on the same examples in {listed}: evaluate these runs "
            f"again, each with {_command('RUN', {task: scored[0].summaries[task]})} and the same "
            "--examples, --seed and --data_dir, if any"
        )
