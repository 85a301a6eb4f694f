"""What an analysis is: a question, what it needs, a table, a figure of that table, a summary."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from analyses.kit.needs import Needs
from analyses.kit.tables import concatenate
from subspace_lab.errors import UserError
from subspace_lab.figures.page import GivenAxes, Page
from subspace_lab.figures.style import COLUMN_WIDTH, paper_style

Summary = Mapping[str, float | int | str | Mapping[str, float]]


def option(default: Any, meaning: str, **settings: Any) -> dict[str, Any]:
    """Declare an option of an analysis, of its default's type.

    >>> option(8, "masks drawn")
    {'type': <class 'int'>, 'default': 8, 'help': 'masks drawn (default: 8)'}
    """
    shown = {"default": default, "help": f"{meaning} (default: {default})"}
    return {"type": type(default), **shown, **settings}


@dataclass(frozen=True)
class Plot:
    """A figure, in two stages where it shows numbers that the analysis's table does not have.

    Attributes:
        draw: draws what `data` makes, which is written as NAME.figure.parquet, on a page; without
            `data` the analysis's own table.
        data: from the analysis's table, the table of what is drawn: means, intervals, bands. An
            empty one leaves the figure out.
        splits: whether `data` takes `by`, a column of the table (projection, layer) whose labels
            get curves of their own.
    """

    draw: Callable[[pd.DataFrame, Page], None]
    data: Callable[..., pd.DataFrame] | None = None
    splits: bool = False

    def shown(self, table: pd.DataFrame, *, by: str | None = None) -> pd.DataFrame:
        """Make the table of what is drawn."""
        if self.data is None:
            return table
        return self.data(table, by=by) if by and self.splits else self.data(table)

    def figure(self, shown: pd.DataFrame, page: Page) -> Figure:
        """Draw the table of what is shown.

        Raises:
            UserError: if it is empty.
        """
        if shown.empty:
            raise UserError("the table has nothing that this figure draws")
        with paper_style():
            self.draw(shown, page)
        return page.figure

    def __call__(
        self,
        table: pd.DataFrame,
        *,
        axes: GivenAxes | None = None,
        width: float = COLUMN_WIDTH,
        titled: bool = True,
        things: Sequence[str] = (),
        by: str | None = None,
    ) -> Figure:
        """Draw an analysis's table.

        `axes`, `width`, `titled` and `things` are those of a `Page`; the labels of `by`, projection
        or layer, get curves of their own.

        Raises:
            UserError: if `axes` are not those of the figure's panels, or nothing is to be drawn.
        """
        page = Page(width=width, titled=titled, axes=axes, things=things)
        return self.figure(self.shown(table, by=by), page)


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
        on_screen: what is printed of the table; None: its text in Markdown, else the summary.
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
