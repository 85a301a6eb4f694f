"""One analysis in the report: what it asks, what the runs of each part show, and how to read it."""

from __future__ import annotations

import base64
import html
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure

from analyses import kit
from analyses.report.evaluations import differences_table
from analyses.report.parts import Exhibit, Part, exhibits
from analyses.report.tables import some
from analyses.report.theorems import theorems_table
from subspace_lab.errors import UserError
from subspace_lab.figures.style import COLUMN_WIDTH, SETTINGS
from subspace_lab.runs.run import Run

NAMED = 3  # runs, of many
TABLES = {"paired_differences": differences_table, "mask_theory": theorems_table}
"""Tables that are shown below an analysis's figure."""
PAGE_WIDTH = 6.9  # inches, of the page's column
PHONE = "40rem"  # of the window, up to which the figure of a paper's column is shown


def question_of(analysis: kit.Analysis) -> str:
    """Give an analysis's question as a heading, in HTML."""
    return html.escape(analysis.question[:1].upper() + analysis.question[1:], quote=False)


def section(
    analysis: kit.Analysis, parts: Sequence[Part], comparisons: Sequence[Path], *, folder: Path
) -> str:
    """Render one analysis; where its table is missing, the command that makes it.

    An analysis without a figure is shown as its text in HTML. `comparisons` are folders of the
    tables of several runs together, and links are relative to `folder`, the page's.
    """
    head = f"<h2 id='{analysis.name}'>{question_of(analysis)}</h2>"
    shown = exhibits(analysis, parts, comparisons)
    if not shown:
        return head + _not_computed(analysis, parts)
    bodies = (_exhibit(analysis, one, folder) for one in shown)
    return f"{head}<p>{analysis.reading}</p>{''.join(bodies)}"


def _exhibit(analysis: kit.Analysis, exhibit: Exhibit, folder: Path) -> str:
    whose = html.escape(exhibit.title)
    title = f"<h3>{whose}</h3>" if whose else ""
    alternative = ": ".join(filter(None, [analysis.question, exhibit.title]))
    pictures = "".join(
        _picture(plot, shown, things=exhibit.things, alternative=alternative)
        for plot in analysis.plots.values()
        if not (shown := plot.shown(exhibit.table)).empty
    )
    texts = [] if analysis.plots else [analysis.texts["html"]]
    texts += [TABLES[analysis.name]] if analysis.name in TABLES else []
    body = "".join(text(exhibit.table) for text in texts)
    missing = some(exhibit.missing, NAMED)
    remarks = [f"Without {missing}: {analysis.why_missing}."] if missing else []
    notes: Mapping[str, Sequence[str]] = exhibit.table.attrs.get("notes", {})
    remarks += [f"{run}: {line}." for run, lines in notes.items() for line in lines]
    remarks += exhibit.table.attrs.get("remarks", [])
    below = "".join(f"<p class='remark'>{html.escape(remark)}</p>" for remark in remarks)
    return title + pictures + body + below + _links(exhibit.sources, folder)


def _picture(
    plot: kit.Plot, shown: pd.DataFrame, *, things: Sequence[str], alternative: str
) -> str:
    """Draw a table in vectors for the page and for a phone; `alternative` says what it shows."""
    wide, narrow = (
        _vectors(plot.figure(shown, kit.Page(width=width, things=things)))
        for width in (PAGE_WIDTH, COLUMN_WIDTH)
    )
    return (
        f"<figure><picture><source media='(max-width: {PHONE})' srcset='{narrow}'>"
        f"<img alt='{html.escape(alternative, quote=True)}' src='{wide}'></picture></figure>"
    )


def _vectors(figure: Figure) -> str:
    """Give a figure as the address of an SVG; its letters are outlines, for want of fonts."""
    stream = io.BytesIO()
    with mpl.rc_context(SETTINGS | {"svg.fonttype": "path"}):
        Figure.savefig(figure, stream, format="svg", metadata={"Date": None})
    return f"data:image/svg+xml;base64,{base64.b64encode(stream.getvalue()).decode()}"


def _links(sources: Sequence[Path], folder: Path) -> str:
    """Link to the tables, relative to the page; of many runs to those of the first ones."""
    links = []
    for source in sources[:NAMED]:
        for path in (source, source.with_suffix(".csv")):
            if path.is_file():
                place = html.escape(Path(os.path.relpath(path, folder)).as_posix(), quote=True)
                links.append(f"<a href='{place}'>{place}</a>")
    more = len(sources) - NAMED
    others = f" and of {more} other run{'s' * (more > 1)}" if more > 0 else ""
    return f"<p class='remark'>Tables: {', '.join(links)}{others}</p>"


def _not_computed(analysis: kit.Analysis, parts: Sequence[Part]) -> str:
    """Give the command, for all runs of the first part or the first run that the analysis reads."""
    if analysis.compares:
        runs = [run for part in parts[:1] for run in part.runs]
    else:
        lacks = {run: _lacks(run, analysis.needs) for part in parts for run in part.runs}
        runs = [run for run, reason in lacks.items() if not reason][:1]
        if not runs:
            return f"<p>Not available: {html.escape(next(iter(lacks.values())))}.</p>"
    named = " ".join(f"--run {run.path}" for run in runs)
    command = html.escape(f"python -m analyses.{analysis.name} {named}")
    return f"<p>Not computed: run <code>{command}</code>.</p>"


def _lacks(run: Run, needs: kit.Needs) -> str:
    """Say what a run lacks for an analysis; empty where it lacks nothing."""
    try:
        kit.check_needs(run, needs)
    except UserError as error:
        return str(error)
    return ""
