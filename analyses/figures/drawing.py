"""Draws the figures of the set that the runs have the data for, and says what the others lack."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from analyses import kit
from analyses.figures.captions import Caption
from analyses.figures.figure_set import FIGURES, SetFigure
from analyses.figures.latex import caption_file
from analyses.figures.samples import data_of
from analyses.figures.sources import Names, Source, configuration_names
from subspace_lab import files
from subspace_lab.errors import UserError
from subspace_lab.figures.style import save
from subspace_lab.runs.run import Run


def draw_set(
    runs: Sequence[Run], out: Path, *, width: float
) -> tuple[list[Caption], dict[str, str]]:
    """Write NAME.pdf, NAME.png, NAME.csv and NAME.caption.tex of each figure.

    Args:
        runs: recorded runs, or adapters.
        out: the folder.
        width: of the figures, in inches.

    Returns:
        The captions of the figures that were drawn, and of each other one, by name, what the runs
        lack.

    Raises:
        UserError: if there is nothing for any of them.
    """
    names = configuration_names(runs)
    colored = list(dict.fromkeys(names.values()))
    known: dict[Source, pd.DataFrame | UserError] = {}
    drawn: list[Caption] = []
    missing: dict[str, str] = {}
    for figure in FIGURES:
        if figure.source not in known:
            known[figure.source] = _table_or_error(figure.source, runs, names)
        table = known[figure.source]
        if isinstance(table, UserError):
            missing[figure.name] = str(table)
            continue
        shown = figure.plot.shown(table)
        if shown.empty:
            missing[figure.name] = "the runs have nothing that it draws"
            continue
        caption = _caption(figure, table, shown, runs, names)
        page = kit.Page(width=width, titled=False, things=colored)
        _write(out / figure.name, figure.plot, shown, page, caption)
        drawn.append(caption)
    if not drawn:
        raise UserError("these runs have nothing for any figure: " + "; ".join(missing.values()))
    return drawn, missing


def _table_or_error(source: Source, runs: Sequence[Run], names: Names) -> pd.DataFrame | UserError:
    try:
        return source(runs, names)
    except UserError as error:
        return error


def _caption(
    figure: SetFigure, table: pd.DataFrame, shown: pd.DataFrame, runs: Sequence[Run], names: Names
) -> Caption:
    inside = {str(name) for column in ("run", "other_run") for name in table.get(column, [])}
    used = [run for run in runs if not inside or run.name in inside]
    n, interval = figure.sample(shown)
    left_out = table.attrs.get("left_out", [])
    return Caption(figure.name, figure.shows, data_of(used, names), n, interval, left_out)


def _write(
    place: Path, plot: kit.Plot, shown: pd.DataFrame, page: kit.Page, caption: Caption
) -> None:
    """Write the files of a figure, whose names begin with `place`."""
    figure = plot.figure(shown, page)
    for form in ("pdf", "png"):
        with files.replacing(place.with_name(f"{place.name}.{form}")) as unfinished:
            save(figure, unfinished, format=form)
    with files.replacing(place.with_name(f"{place.name}.csv")) as unfinished:
        shown.to_csv(unfinished, index=False)
    with files.replacing(place.with_name(f"{place.name}.caption.tex")) as unfinished:
        unfinished.write_text(caption_file(caption), encoding="utf-8")
