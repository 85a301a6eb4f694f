"""Draws the figures of the set that the runs have the data for, and says what the others lack."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from analyses import kit
from analyses.figures.captions import Caption, caption_file
from analyses.figures.figure_set import FIGURES
from analyses.figures.samples import data_of
from analyses.figures.sources import Source, configuration_names
from subspace_lab import files
from subspace_lab.errors import UserError
from subspace_lab.figures.style import save
from subspace_lab.runs.run import Run


def draw_set(
    runs: Sequence[Run], out: Path, *, width: float
) -> tuple[list[Caption], dict[str, str]]:
    """Write NAME.pdf, NAME.png, NAME.csv and NAME.caption.tex of each figure.

    Returns:
        The captions of the figures that were drawn, and of each other one, by name, what the runs
        lack.

    Raises:
        UserError: if there is nothing for any of them.
    """
    names = configuration_names(runs)
    known: dict[Source, pd.DataFrame | UserError] = {}
    drawn: list[Caption] = []
    missing: dict[str, str] = {}
    for figure in FIGURES:
        if figure.source not in known:
            try:
                known[figure.source] = figure.source(runs, names)
            except UserError as error:
                known[figure.source] = error
        table = known[figure.source]
        if isinstance(table, UserError):
            missing[figure.name] = str(table)
            continue
        shown = figure.plot.shown(table)
        if shown.empty:
            missing[figure.name] = "the runs have nothing that it draws"
            continue
        inside = {str(name) for column in ("run", "other_run") for name in table.get(column, [])}
        data = data_of([run for run in runs if not inside or run.name in inside], names)
        left_out = table.attrs.get("left_out", [])
        caption = Caption(figure.name, figure.shows, data, *figure.sample(shown), left_out)
        page = kit.Page(width=width, titled=False, things=list(dict.fromkeys(names.values())))
        image = figure.plot.figure(shown, page)
        for form in ("pdf", "png"):
            with files.replacing(out / f"{figure.name}.{form}") as unfinished:
                save(image, unfinished, format=form)
        with files.replacing(out / f"{figure.name}.csv") as unfinished:
            shown.to_csv(unfinished, index=False)
        files.write_utf8(out / f"{figure.name}.caption.tex", caption_file(caption))
        drawn.append(caption)
    if not drawn:
        raise UserError("these runs have nothing for any figure: " + "; ".join(missing.values()))
    return drawn, missing
