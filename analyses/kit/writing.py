"""What an analysis writes: tables, the figure, a summary with where it came from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from analyses.kit.analysis import Analysis
from subspace_lab.figures.style import paper_style, save
from subspace_lab.recording import files
from subspace_lab.recording.provenance import provenance
from subspace_lab.recording.run import Run


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

    Args:
        analysis: the analysis.
        runs: the runs behind the table.
        table: the analysis's table.
        folder: where to write.
        forms: formats of the figure; `none`: no figure and no table of it.
        csv: write the tables as CSV, too.
        arguments: of the command, kept in NAME.json.
    """
    paths = write_table(folder / f"{analysis.name}.parquet", table, csv=csv)
    if forms := [form for form in dict.fromkeys(forms) if form != "none"]:
        data = analysis.plot.data(table)
        paths += write_table(folder / f"{analysis.name}.figure.parquet", data, csv=csv)
        with paper_style():
            figure = analysis.plot.draw(data)
        for form in forms:
            paths.append(folder / f"{analysis.name}.{form}")
            with files.replacing(paths[-1]) as unfinished:
                save(figure, unfinished, format=form)
    summary = analysis.summarize(table)
    paths.append(folder / f"{analysis.name}.json")
    files.write_json(
        paths[-1],
        {
            "analysis": analysis.name,
            "question": analysis.question,
            "summary": {key: _jsonable(value) for key, value in summary.items()},
            "runs": [_describe(run) for run in runs],
            "arguments": {key: _jsonable(value) for key, value in (arguments or {}).items()},
            "provenance": provenance(),
        },
    )
    print(f"{analysis.name} of {', '.join(run.name for run in runs)} ({len(table):,} rows)")
    for key, value in summary.items():
        print(f"  {key}: {_shown(value)}")
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
