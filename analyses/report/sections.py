"""One analysis in the report: what it asks, what the runs of each part show, and how to read it."""

from __future__ import annotations

import html
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from analyses import kit
from analyses.report.evaluations import differences_table
from analyses.report.parts import Exhibit, Part, exhibits
from analyses.report.pictures import picture
from analyses.report.predictions import theorems_table
from subspace_lab.errors import UserError
from subspace_lab.runs.run import Run

NAMED = 3  # runs, of many
TABLES = {"paired_differences": differences_table, "mask_theory": theorems_table}
"""Tables that are shown below an analysis's figure."""


def question_of(analysis: kit.Analysis) -> str:
    """Give an analysis's question as a heading, in HTML."""
    return html.escape(analysis.question[:1].upper() + analysis.question[1:], quote=False)


def section(
    analysis: kit.Analysis, parts: Sequence[Part], comparisons: Sequence[Path], *, folder: Path
) -> str:
    """Render one analysis; where its table is missing, the command that makes it.

    Args:
        analysis: the analysis; one without a figure is shown as its text in HTML.
        parts: the runs of the report.
        comparisons: folders of the tables of several runs together.
        folder: of the page, to which links are relative.
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
        picture(plot, shown, things=exhibit.things, alternative=alternative)
        for plot in analysis.plots.values()
        if not (shown := plot.shown(exhibit.table)).empty
    )
    texts = [] if analysis.plots else [analysis.texts["html"]]
    texts += [TABLES[analysis.name]] if analysis.name in TABLES else []
    body = "".join(text(exhibit.table) for text in texts)
    missing = _names(exhibit.missing)
    remarks = [f"Without {missing}: {analysis.why_missing}."] if missing else []
    notes: Mapping[str, Sequence[str]] = exhibit.table.attrs.get("notes", {})
    remarks += [f"{run}: {line}." for run, lines in notes.items() for line in lines]
    remarks += exhibit.table.attrs.get("remarks", [])
    below = "".join(f"<p class='remark'>{html.escape(remark)}</p>" for remark in remarks)
    return title + pictures + body + below + _links(exhibit.sources, folder)


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


def _names(names: Iterable[str]) -> str:
    """Name a few, and say how many others there are."""
    known = list(names)
    more = len(known) - NAMED
    if more <= 1:
        return ", ".join(known)
    return f"{', '.join(known[:NAMED])} and {more} others"
