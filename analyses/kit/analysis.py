"""What an analysis is: a question, what it needs, a table, a figure of that table, a summary."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from analyses.kit.needs import Needs
from analyses.kit.tables import concatenate
from subspace_lab.figures.style import paper_style

Summary = Mapping[str, float | int | str | Mapping[str, float]]


@dataclass(frozen=True)
class Plot:
    """A figure, in two stages where it shows numbers that the analysis's table does not have.

    Attributes:
        draw: draws what `data` makes, which is written as NAME.figure.parquet; without `data` the
            analysis's own table.
        data: from the analysis's table, the table of what is drawn: means, intervals, bands.
    """

    draw: Callable[[pd.DataFrame], Figure]
    data: Callable[[pd.DataFrame], pd.DataFrame] | None = None

    def __call__(self, table: pd.DataFrame) -> Figure:
        """Draw an analysis's table."""
        with paper_style():
            return self.draw(table if self.data is None else self.data(table))


@dataclass(frozen=True, kw_only=True)
class Analysis:
    """One analysis, as its module declares it.

    Attributes:
        name: the module's name, `python -m analyses.NAME`.
        description: what its numbers mean: the module's docstring, shown by --help.
        question: what it asks, in one line without a capital letter.
        compute: makes the tidy table of a run, given `steps`, `modules` (None: all) and the
            options by keyword. Where `compares` is true, of a list of runs, with `steps` and
            `modules` as the command line names them.
        summarize: the few numbers that are printed and kept in NAME.json.
        plot: the figure, or several by the names of their files; None: no figure.
        texts: what is written of the table as text: extension of NAME.EXTENSION to a function of
            the table; those of extension html are also shown in the report.
        on_screen: what is printed of the table; None: the summary.
        needs: what it reads from a run.
        reading: how to read the figure, in plain words, as HTML for the report; empty: the report
            leaves the analysis out.
        why_missing: why a run of the report may have no such table.
        options: its own options: keyword of `compute` to arguments of argparse's `add_argument`.
        compares: whether `compute` takes all runs together.
        selects: whether it takes `steps` and `modules`.
        without_runs: whether it has something to say of no run at all.
        csv: whether tables are written as CSV, too, unless --no-csv is given.
        join: stacks the tables of several runs.
        position: its place in lists and in the report, ascending.
    """

    name: str
    description: str | None
    question: str
    compute: Callable[..., pd.DataFrame]
    summarize: Callable[[pd.DataFrame], Summary]
    plot: Plot | Mapping[str, Plot] | None = None
    texts: Mapping[str, Callable[[pd.DataFrame], str]] = field(default_factory=dict)
    on_screen: Callable[[pd.DataFrame], str] | None = None
    needs: Needs = Needs.FACTORS | Needs.CORES
    reading: str = ""
    why_missing: str = "it was not computed"
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    compares: bool = False
    selects: bool = True
    without_runs: bool = False
    csv: bool = False
    join: Callable[[Iterable[pd.DataFrame]], pd.DataFrame] = concatenate
    position: int = 100

    @property
    def plots(self) -> Mapping[str, Plot]:
        """The figures by the names of their files."""
        if self.plot is None:
            return {}
        return {self.name: self.plot} if isinstance(self.plot, Plot) else self.plot
