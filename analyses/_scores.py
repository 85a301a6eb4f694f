"""What `python -m subspace_lab.evaluate` found about test rows, checked to be comparable."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from analyses._configurations import repetitions
from subspace_lab.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

    from subspace_lab.recording.run import Run


@dataclass(frozen=True)
class Scored:
    """A run and the summaries of its evaluations on test rows, by task."""

    run: Run
    summaries: Mapping[str, Mapping[str, Any]]

    def rows(self, task: str) -> pd.DataFrame:
        """Read the table of a task, one row per example."""
        from subspace_lab.evaluation.records import FOLDER
        from subspace_lab.recording import files

        return files.read_table(self.run.path / FOLDER / f"{task}.parquet")


def scored_groups(
    runs: Iterable[Run], *, tasks: Collection[str] | None = None
) -> list[list[Scored]]:
    """Read the scores of the runs that have any, one list per configuration.

    Args:
        runs: runs; those without a configuration or without scores on test rows are left out.
        tasks: only these; None: all.

    Raises:
        UserError: if two runs of one configuration and seed were scored on one task.
    """
    from subspace_lab.evaluation.records import read_summaries

    scored: dict[Run, Scored] = {}
    for run in runs:
        summaries = {
            task: summary
            for task, summary in read_summaries(run.path).items()
            if (tasks is None or task in tasks)
            and summary["settings"].get("split", "test") == "test"
        }
        if summaries:
            scored[run] = Scored(run, summaries)
    groups = [[scored[run] for run in group] for group in repetitions(scored)]
    for group in groups:
        _check_no_doubles(group)
    return groups


def _check_no_doubles(group: Sequence[Scored]) -> None:
    known: dict[tuple[str, Any], Run] = {}
    for one in group:
        for task in one.summaries:
            other = known.setdefault((task, one.run.config["seed"]), one.run)
            if other is not one.run:
                raise UserError(
                    f"{one.run.path} has the configuration and seed of {other.path}: leave one out"
                )


def check_same_evaluation(scored: Iterable[Scored]) -> None:
    """Check that each task was evaluated in the same way, after the same optimizer step.

    Raises:
        UserError: if two runs differ in metric, settings or step of a task.
    """
    from subspace_lab.evaluation.records import way_of_measuring

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
