"""Tables behind the figures: an analysis of each run, or of all, with the configurations' names."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from analyses import grassmann, kit
from analyses.comparisons.configurations import describe, repetitions
from analyses.comparisons.pairing import name_of
from analyses.kit.command import steps_of
from subspace_lab import files
from subspace_lab.errors import UserError
from subspace_lab.runs.run import Run

Names = Mapping[str, str]
Source = Callable[[Sequence[Run], Names], pd.DataFrame]
"""Makes a table of runs, given their configurations' names. Its attribute `left_out` has a sentence
for each run that is not in it. Raises UserError where there is nothing to make it of."""
MAX_SNAPSHOTS = 3  # at which a whole model is evaluated


def configuration_names(runs: Sequence[Run]) -> dict[str, str]:
    """Name each run's configuration as the comparisons do: method, settings, learning rate.

    The rate is named where runs differ in it. An adapter of another tool has its own name.
    """
    groups = repetitions(runs)
    settings = describe([group[0] for group in groups], but=["learning_rate"]) if groups else []
    rates = [group[0].config.get("learning_rate") for group in groups]
    with_rank = len({one["rank"] for one in settings if one["rank"]}) > 1
    names = {run.name: run.name for run in runs}
    for group, one, rate in zip(groups, settings, rates, strict=True):
        at = f" at {rate:g}" if rate is not None and len(set(rates)) > 1 else ""
        name = name_of(one, with_rank=with_rank) + at
        names |= dict.fromkeys((run.name for run in group), name)
    return names


def of_each_run(analysis: kit.Analysis, *, all_snapshots: bool = False, **options: Any) -> Source:
    """Stack an analysis's tables of the runs that have one.

    With `all_snapshots`, at most MAX_SNAPSHOTS of each run, evenly spread over training, the first
    and the last among them, are evaluated; else the analysis's default. Of its `options` the others
    have their defaults.
    """
    chosen = {name: settings["default"] for name, settings in analysis.options.items()
              if settings.get("default") is not None} | options  # fmt: skip

    def table_of(run: Run) -> pd.DataFrame:
        path = run.output_folder / f"{analysis.name}.parquet"
        record = run.path / "run.json"
        if record.is_file() and path.is_file() and path.stat().st_mtime > record.stat().st_mtime:
            table = files.read_table(path).assign(run=run.name)
            return table.drop(columns="configuration", errors="ignore")
        kit.check_needs(run, analysis.needs)
        steps = None
        if all_snapshots:
            known = steps_of(analysis, run)
            places = np.linspace(0, len(known) - 1, min(len(known), MAX_SNAPSHOTS))
            steps = [known[place] for place in places.round().astype(int)]
        return analysis.compute(run, steps=steps, modules=None, **chosen)

    def source(runs: Sequence[Run], names: Names) -> pd.DataFrame:
        tables, left_out = [], []
        for run in runs:
            try:
                tables.append(table_of(run))
            except UserError as error:
                left_out.append(str(error))
        if not tables:
            raise UserError("; ".join(left_out))
        table = analysis.join(tables)
        table["configuration"] = table["run"].astype(str).map(names).astype("category")
        table.attrs["left_out"] = left_out
        return table

    return source


def of_all_runs(analysis: kit.Analysis) -> Source:
    """Make the table of an analysis that compares the runs."""

    def source(runs: Sequence[Run], names: Names) -> pd.DataFrame:
        table = analysis.compute(runs)
        table.attrs["left_out"] = table.attrs.get("remarks", [])
        return table

    return source


def overlaps_of_seeds(runs: Sequence[Run], names: Names) -> pd.DataFrame:
    """Compare the final adapters of each configuration, a seed with the next one.

    Returns:
        The columns of `analyses.grassmann` and `configuration`.
    """
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(names[run.name], []).append(run)
    tables, left_out = [], []
    for name, group in groups.items():
        if len(group) == 1:
            left_out.append(f"{name} has one seed: train several")
        for first, second in itertools.pairwise(group):
            try:
                table = grassmann.compute(first, second)
            except UserError as error:
                left_out.append(str(error))
            else:
                tables.append(table.assign(configuration=name))
    if not tables:
        raise UserError("; ".join(left_out))
    table = kit.concatenate(tables)
    table.attrs["left_out"] = left_out
    return table
