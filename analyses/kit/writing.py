"""What an analysis writes: tables, the figure, a summary with where it came from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from analyses.kit.analysis import Analysis
from analyses.kit.needs import Needs
from analyses.kit.notes import notes as notes_on
from subspace_lab import files
from subspace_lab.figures.page import VENUES, Page
from subspace_lab.figures.style import COLUMN_WIDTH, save
from subspace_lab.provenance import provenance
from subspace_lab.runs.run import Run


def write_results(
    analysis: Analysis, runs: Sequence[Run], table: pd.DataFrame, *, arguments: Mapping[str, Any]
) -> None:
    """Write tables, texts, figures and NAME.json; print the summary and the paths.

    Where it is about factors, the notes on each run (`analyses.kit.notes`) are printed, and kept
    in NAME.json and in the table's attribute `notes`.

    The `arguments` of the command (out, csv, format, venue, width, title, by) are kept in
    NAME.json, too; `out` is the folder, or the file of a text, which gives the others its name, and
    the format `none` alone makes neither a figure nor its table.
    """
    out, csv = arguments["out"] or default_folder(runs), arguments["csv"]
    is_file = out.suffix[1:] in analysis.texts
    folder, name = (out.parent, out.stem) if is_file else (out, analysis.name)
    formats = [f for f in dict.fromkeys(arguments.get("format") or ["png", "pdf"]) if f != "none"]
    summary = analysis.summarize(table)
    of_factors = Needs.FACTORS in analysis.needs
    notes = {run.name: notes_on(run) if of_factors else [] for run in runs}
    table.attrs["notes"] = notes
    paths = _write_table(folder / f"{name}.parquet", table, csv=csv)
    table.attrs["folder"] = str(folder)  # to which links in texts are relative
    for extension, text_of in analysis.texts.items():
        paths.append(folder / f"{name}.{extension}")
        files.write_utf8(paths[-1], text_of(table))
    for title, plot in analysis.plots.items() if formats else ():
        stem = name if title == analysis.name else title
        shown = plot.shown(table, by=arguments.get("by"))
        if shown.empty:
            print(f"no figure {stem}: the table has nothing that it draws")
            continue
        if plot.data is not None:
            paths += _write_table(folder / f"{stem}.figure.parquet", shown, csv=csv)
        figure = plot.figure(shown, page_of(arguments))
        for form in formats:
            paths.append(folder / f"{stem}.{form}")
            with files.replacing(paths[-1]) as unfinished:
                save(figure, unfinished, format=form)
    paths.append(folder / f"{name}.json")
    files.write_json(
        paths[-1],
        {
            "analysis": analysis.name,
            "question": analysis.question,
            "summary": _jsonable(summary),
            "runs": [
                {
                    "name": run.name,
                    "path": str(run.path),
                    "config": run.config,
                    "mask": run.description.get("mask"),
                    "provenance": run.description.get("provenance", {}),
                    "notes": notes[run.name],
                }
                for run in runs
            ],
            "arguments": _jsonable(arguments),
            "provenance": provenance(),
        },
    )
    print(f"{analysis.name} of {', '.join(run.name for run in runs)} ({len(table):,} rows)")
    if on_screen := analysis.on_screen or analysis.texts.get("md"):
        print(on_screen(table))
    else:
        for key, value in summary.items():
            print(f"  {key}: {_shown(value)}")
    for name_of_run, lines in notes.items():
        for line in lines:
            print(f"  note on {name_of_run}: {line}")
    for path in paths:
        print(f"wrote {path}")


def page_of(arguments: Mapping[str, Any]) -> Page:
    """Make the page of a figure, as --venue, --width and --title of a command ask for it."""
    width = arguments.get("width") or VENUES.get(arguments.get("venue") or "", COLUMN_WIDTH)
    return Page(width=width, titled=arguments.get("title") != "none")


def _write_table(path: Path, table: pd.DataFrame, *, csv: bool) -> list[Path]:
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


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_shown(number)}" for key, number in value.items())
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _jsonable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _jsonable(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_jsonable(entry) for entry in value]
    return value if isinstance(value, str | int | float | None) else str(value)
