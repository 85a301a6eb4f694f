"""The runs of a report by what they learned, and the tables that analyses wrote about them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from analyses import kit
from subspace_lab import files
from subspace_lab.configurations import PROBLEM, identity, label_configurations, without_seed
from subspace_lab.runs.run import Run


@dataclass(frozen=True)
class Part:
    """Runs that learned the same thing, with its name in words."""

    name: str
    runs: tuple[Run, ...]

    @property
    def names(self) -> set[str]:
        """The names of the runs."""
        return {run.name for run in self.runs}

    @property
    def things(self) -> list[str]:
        """What has a color in all figures: configurations where some have several seeds."""
        labels = label_configurations({run.name: run.config for run in self.runs})
        repeated = len(set(labels.values())) < len(labels)
        return list(dict.fromkeys(labels.values() if repeated else labels))

    @property
    def repetitions(self) -> list[list[Run]]:
        """The runs of each configuration."""
        groups: dict[str, list[Run]] = {}
        for run in self.runs:
            law = {k: v for k, v in (run.description.get("mask") or {}).items() if k != "seed"}
            settings = without_seed(run.config) | {"law": law}
            groups.setdefault(identity(settings) if run.config else run.name, []).append(run)
        return list(groups.values())


@dataclass(frozen=True)
class Exhibit:
    """A table that a section shows, with the files that it was read from.

    Attributes:
        title: whose it is; empty where the report has one part only.
        things: runs or configurations in the order of their colors.
        missing: runs of the part without such a table.
    """

    title: str
    table: pd.DataFrame
    sources: Sequence[Path]
    things: Sequence[str] = ()
    missing: Sequence[str] = ()


def parts_of(runs: Sequence[Run]) -> list[Part]:
    """Group runs by base, data and length of training, in their order.

    Parts are named by what they learned, such as "flip, 128 examples, 40 % label noise".
    """
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(identity(_problem(run)), []).append(run)
    problems = [_problem(members[0]) for members in groups.values()]
    names = [_name(problem) for problem in problems]
    parts = []
    for name, problem, members in zip(names, problems, groups.values(), strict=True):
        steps, epochs, base = (problem.get(key) for key in ("steps", "epochs", "base"))
        length = f"{steps} steps" if steps else f"{epochs} epochs"
        unique = name if names.count(name) == 1 else f"{name}, {length} of {base}"
        parts.append(Part(unique, tuple(members)))
    return parts


def _problem(run: Run) -> dict[str, Any]:
    settings = without_seed(run.config)
    return {name: settings[name] for name in PROBLEM if name in settings}


def _name(problem: Mapping[str, Any]) -> str:
    if "task" not in problem:
        return "runs of another script"
    size, noise = problem.get("train_size"), problem.get("label_noise")
    words = [str(problem["task"])]
    words += [f"{size:,} examples"] if size else []
    words += [f"{100 * noise:g} % label noise"] if noise else []
    return ", ".join(words)


def exhibits(
    analysis: kit.Analysis, parts: Sequence[Part], comparisons: Sequence[Path]
) -> list[Exhibit]:
    """List the tables of an analysis, one for each part that has any.

    A comparison whose table does not name runs, such as that of claims, belongs to the part of all
    its runs, by its NAME.json; one of several parts comes last.
    """
    shown = []
    wholes = [
        Exhibit("runs of several problems", files.read_table(path), [path])
        for folder in comparisons
        if analysis.compares and (path := folder / f"{analysis.name}.parquet").is_file()
    ]
    behind = [(whole, names) for whole in wholes if (names := _compared(whole))]
    for part in parts:
        title = part.name if len(parts) > 1 else ""
        if tables := tables_of(analysis, part.runs, comparisons):
            # What several runs share, such as the masks of one seed, counts once in mask_theory.
            table = kit.label(analysis.join(tables.values()), list(tables))
            notes = {run.name: one.attrs.get("notes", {}) for run, one in tables.items()}
            table.attrs["notes"] = {name: list(of.get(name, [])) for name, of in notes.items()}
            sources = dict.fromkeys(Path(one.attrs["path"]) for one in tables.values())
            missing = [run.name for run in part.runs if run not in tables]
            shown.append(Exhibit(title, table, list(sources), part.things, missing))
        for whole, names in behind:
            if names <= part.names:
                shown.append(replace(whole, title=title, things=part.things))
    return shown + [
        whole
        for whole, names in behind
        if names <= set().union(*(part.names for part in parts))
        and not any(names <= part.names for part in parts)
    ]


def _compared(whole: Exhibit) -> set[str]:
    """Name the runs behind a comparison whose table does not name them; else give none."""
    beside = whole.sources[0].with_suffix(".json")
    if "run" in whole.table or not beside.is_file():
        return set()
    return {str(run["name"]) for run in files.read_json(beside)["runs"]}


def tables_of(
    analysis: kit.Analysis, runs: Sequence[Run], comparisons: Sequence[Path]
) -> dict[Run, pd.DataFrame]:
    """Read the tables of the runs that have one, if possible from their comparison.

    The attribute `path` of each is its file.
    """
    paths = [folder / f"{analysis.name}.parquet" for folder in comparisons if analysis.compares]
    if not (together := [path for path in paths if path.is_file()]):
        own = {run: run.output_folder / f"{analysis.name}.parquet" for run in runs}
        return {run: _own(run, path) for run, path in own.items() if path.is_file()}
    tables: dict[Run, pd.DataFrame] = {}
    for path in together:
        whole = files.read_table(path)
        if "run" not in whole:
            continue
        names = whole["run"].astype(str)
        for run in runs:
            rows = whole[names == run.name].astype({"run": str}).reset_index(drop=True)
            if len(rows) and run not in tables:
                rows.attrs = {"notes": whole.attrs.get("notes", {}), "path": str(path)}
                tables[run] = rows.drop(columns="configuration", errors="ignore")
    return tables


def _own(run: Run, path: Path) -> pd.DataFrame:
    table = files.read_table(path).assign(run=run.name)
    notes = table.attrs.get("notes", {}).values()
    table.attrs["notes"] = {run.name: [line for lines in notes for line in lines]}
    table.attrs["path"] = str(path)
    return table.drop(columns="configuration", errors="ignore")
