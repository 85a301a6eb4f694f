"""One analysis in the report: what it asks, what all runs show together, and how to read it."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from analyses import kit
from subspace_lab import files
from subspace_lab.configurations import label_configurations
from subspace_lab.figures.style import DOTS_PER_INCH
from subspace_lab.runs.run import Run


def section(analysis: kit.Analysis, runs: Sequence[Run], comparisons: Path) -> str:
    """Render one analysis; where its table is missing, the command that makes it.

    Args:
        analysis: the analysis; one without a figure is shown as its text in HTML.
        runs: the runs of the report.
        comparisons: folder of the tables of all runs together.
    """
    question = html.escape(analysis.question[:1].upper() + analysis.question[1:])
    head = f"<h2>{question}</h2>"
    together = comparisons / f"{analysis.name}.parquet"
    is_together = analysis.compares and together.is_file()
    if analysis.plots:
        tables = tables_of(analysis, runs, comparisons)
        if not tables:
            return head + _not_computed(analysis, runs)
        # What several runs share, such as the masks of one seed, counts once in mask_theory.
        table = kit.label(analysis.join(tables.values()), list(tables))
        colored = things(runs)
        body = "".join(
            _figure(plot.figure(shown, kit.Page(things=colored)), question)
            for plot in analysis.plots.values()
            if not (shown := plot.shown(table)).empty
        )
        missing = ", ".join(run.name for run in runs if run not in tables)
        remarks = [f"Without {missing}: {analysis.why_missing}."] if missing else []
        for table in tables.values():
            remarks += _notes(table)
    elif is_together:
        table = files.read_table(together)
        body, remarks = analysis.texts["html"](table), _notes(table)
    else:
        return head + _not_computed(analysis, runs)
    place = html.escape(str(comparisons) if is_together else "RUN/analyses")
    return (
        f"{head}<p>{analysis.reading}</p>{body}"
        + "".join(f"<p class='remark'>{html.escape(remark)}</p>" for remark in remarks)
        + f"<p class='remark'>Tables: <code>{place}/{analysis.name}.parquet</code></p>"
    )


def things(runs: Sequence[Run]) -> list[str]:
    """List what has a color of its own in all figures of a report: configurations, then runs."""
    labels = label_configurations({run.name: run.config for run in runs})
    repeated = len(set(labels.values())) < len(runs)
    return [*(labels.values() if repeated else ()), *(run.name for run in runs)]


def tables_of(
    analysis: kit.Analysis, runs: Sequence[Run], comparisons: Path
) -> dict[Run, pd.DataFrame]:
    """Read the tables of the runs that have one, if possible from their comparison."""
    together = comparisons / f"{analysis.name}.parquet"
    tables = {}
    if analysis.compares and together.is_file():
        whole = files.read_table(together)
        notes = whole.attrs.get("notes", {})
        for run in runs:
            rows = whole[whole["run"] == run.name].astype({"run": str}).reset_index(drop=True)
            if len(rows):
                rows.attrs = {"notes": {run.name: notes.get(run.name, [])}}
                tables[run] = rows
    else:
        for run in runs:
            path = run.output_folder / f"{analysis.name}.parquet"
            if path.is_file():
                table = files.read_table(path).assign(run=run.name)
                notes = table.attrs.get("notes", {}).values()
                table.attrs["notes"] = {run.name: [line for lines in notes for line in lines]}
                tables[run] = table
    return {
        run: table.drop(columns="configuration", errors="ignore") for run, table in tables.items()
    }


def _not_computed(analysis: kit.Analysis, runs: Sequence[Run]) -> str:
    named = " ".join(f"--run {run.path}" for run in (runs if analysis.compares else runs[:1]))
    command = html.escape(f"python -m analyses.{analysis.name} {named}")
    return f"<p>Not computed: run <code>{command}</code>.</p>"


def _notes(table: pd.DataFrame) -> list[str]:
    notes: Mapping[str, Sequence[str]] = table.attrs.get("notes", {})
    return [f"{run}: {line}." for run, lines in notes.items() for line in lines]


def _figure(figure: Figure, alternative: str) -> str:
    """Put a figure into the page."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=DOTS_PER_INCH)
    data = base64.b64encode(stream.getvalue()).decode()
    return f"<figure><img alt='{alternative}' src='data:image/png;base64,{data}'></figure>"
