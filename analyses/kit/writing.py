"""What an analysis writes: tables, the figure, a summary with where it came from."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from analyses.kit.analysis import Analysis, Plot
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
    name: str | None = None,
    csv: bool = False,
    arguments: Mapping[str, Any] | None = None,
) -> None:
    """Write tables, texts, figures and NAME.json; print the summary and the paths.

    Where it is about factors, the notes on each run (`analyses.kit.notes`) are printed, and kept
    in NAME.json and in the table's attribute `notes`.

    Args:
        analysis: the analysis.
        runs: the runs behind the table.
        table: the analysis's table.
        folder: where to write.
        forms: formats of the figures; `none` alone: no figure and no table of it.
        name: NAME of the files; None: the analysis's.
        csv: write the tables as CSV, too.
        arguments: of the command, kept in NAME.json.
    """
    name = name or analysis.name
    summary = analysis.summarize(table)
    of_factors = Needs.FACTORS in analysis.needs
    notes = {run.name: notes_on(run) if of_factors else [] for run in runs}
    table.attrs["notes"] = notes
    formats = [form for form in dict.fromkeys(forms) if form != "none"]
    paths = write_table(folder / f"{name}.parquet", table, csv=csv)
    for extension, text_of in analysis.texts.items():
        paths.append(folder / f"{name}.{extension}")
        with files.replacing(paths[-1]) as unfinished:
            unfinished.write_text(text_of(table), encoding="utf-8")
    for title, plot in analysis.plots.items() if formats else ():
        stem = folder / (name if title == analysis.name else title)
        paths += _write_figure(plot, table, stem, formats, csv=csv)
    paths.append(folder / f"{name}.json")
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
    if analysis.on_screen is None:
        for key, value in summary.items():
            print(f"  {key}: {_shown(value)}")
    else:
        print(analysis.on_screen(table))
    print_notes(notes)
    for path in paths:
        print(f"wrote {path}")


def _write_figure(
    plot: Plot, table: pd.DataFrame, stem: Path, formats: Sequence[str], *, csv: bool
) -> list[Path]:
    """Write STEM.FORMAT and, of what the table does not have, STEM.figure.parquet."""
    paths = []
    if plot.data is not None:
        table = plot.data(table)
        paths += write_table(stem.with_name(f"{stem.name}.figure.parquet"), table, csv=csv)
    with paper_style():
        figure = plot.draw(table)
    for form in formats:
        paths.append(stem.with_name(f"{stem.name}.{form}"))
        with files.replacing(paths[-1]) as unfinished:
            save(figure, unfinished, format=form)
    return paths


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
        "mask": run.description.get("mask"),
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
