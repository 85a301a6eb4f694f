"""What an analysis writes: tables, the figure, a summary with where it came from."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from analyses.kit.analysis import Analysis
from analyses.kit.needs import Needs
from analyses.kit.notes import notes as notes_on
from analyses.kit.notes import print_notes
from subspace_lab import files
from subspace_lab.figures.style import paper_style, save
from subspace_lab.provenance import provenance
from subspace_lab.runs.run import Run


def write_results(
    analysis: Analysis,
    runs: Sequence[Run],
    table: pd.DataFrame,
    *,
    folder: Path,
    forms: Sequence[str],
    csv: bool = False,
    arguments: Mapping[str, Any] | None = None,
) -> None:
    """Write NAME.parquet, NAME.figure.parquet, the figure and NAME.json; print summary and paths.

    Where it is about factors, the notes on each run (`analyses.kit.notes`) are printed, and kept
    in NAME.json and in the table's attribute `notes`.

    Args:
        analysis: the analysis.
        runs: the runs behind the table.
        table: the analysis's table.
        folder: where to write.
        forms: formats of the figure; `none` alone: no figure and no table of it.
        csv: write the tables as CSV, too.
        arguments: of the command, kept in NAME.json.
    """
    summary = analysis.summarize(table)
    formats = [form for form in dict.fromkeys(forms) if form != "none"]
    data = analysis.plot.data(table) if analysis.plot.data and formats else None
    if formats:
        with paper_style():
            figure = analysis.plot.draw(table if data is None else data)
    of_factors = Needs.FACTORS in analysis.needs
    notes = {run.name: notes_on(run) if of_factors else [] for run in runs}
    table.attrs["notes"] = notes
    paths = write_table(folder / f"{analysis.name}.parquet", table, csv=csv)
    if data is not None:
        paths += write_table(folder / f"{analysis.name}.figure.parquet", data, csv=csv)
    for form in formats:
        paths.append(folder / f"{analysis.name}.{form}")
        with files.replacing(paths[-1]) as unfinished:
            save(figure, unfinished, format=form)
    paths.append(folder / f"{analysis.name}.json")
    files.write_json(
        paths[-1],
        {
            "analysis": analysis.name,
            "question": analysis.question,
            "summary": {key: _jsonable(value) for key, value in summary.items()},
            "runs": [{**_describe(run), "notes": notes[run.name]} for run in runs],
            "arguments": {key: _jsonable(value) for key, value in (arguments or {}).items()},
            "provenance": provenance(),
        },
    )
    print(f"{analysis.name} of {', '.join(run.name for run in runs)} ({len(table):,} rows)")
    for key, value in summary.items():
        print(f"  {key}: {_shown(value)}")
    print_notes(notes)
    for path in paths:
        print(f"wrote {path}")


def write_table(path: Path, table: pd.DataFrame, *, csv: bool) -> list[Path]:
    """Write a table as parquet, and as CSV beside it if asked to; give the paths."""
    files.write_table(path, table)
    if not csv:
        return [path]
    beside = path.with_suffix(".csv")
    with files.replacing(beside) as unfinished:
        table.to_csv(unfinished, index=False)
    return [path, beside]


def write_comparison(
    folder: Path,
    name: str,
    table: pd.DataFrame,
    text: str,
    figures: Mapping[str, Figure],
    form: str,
) -> None:
    """Write NAME.csv, NAME.md and the figures by their titles, and print the paths."""
    writers: dict[str, Callable[[Path], object]] = {
        f"{name}.csv": lambda path: table.to_csv(path, index=False),
        f"{name}.md": lambda path: path.write_text(text, encoding="utf-8"),
    }
    for title, figure in figures.items():
        writers[f"{title}.{form}"] = functools.partial(save, figure, format=form)
    for file, write in writers.items():
        with files.replacing(folder / file) as unfinished:
            write(unfinished)
        print(f"wrote {folder / file}")


def default_folder(runs: Sequence[Run]) -> Path:
    """Name the folder for an analysis of these runs: RUN/analyses, or comparisons/NAMES."""
    if len(runs) == 1:
        return runs[0].output_folder
    names = "+".join(run.name.replace("/", "-") for run in runs)
    return Path("comparisons") / names[:120]


def _describe(run: Run) -> dict[str, Any]:
    return {
        "name": run.name,
        "path": str(run.path),
        "config": run.config,
        "mask": run.mask_law,
        "provenance": run.description.get("provenance", {}),
    }


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_shown(number)}" for key, number in value.items())
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _jsonable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _jsonable(entry) for key, entry in value.items()}
    return value if isinstance(value, str | int | float | list | None) else str(value)
