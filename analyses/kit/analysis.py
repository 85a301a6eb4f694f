"""What an analysis is: a question, what it needs, a table, a figure of that table, a summary."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from analyses.kit.needs import Needs
from subspace_lab.figures.style import paper_style

Summary = Mapping[str, float | int | str | Mapping[str, float]]


@dataclass(frozen=True)
class Plot:
    """A figure in two stages, so that a user has every number that it shows.

    Attributes:
        data: from the analysis's table, the table of what is drawn: means, intervals, bands.
        draw: draws columns of that table and computes nothing.
    """

    data: Callable[[pd.DataFrame], pd.DataFrame]
    draw: Callable[[pd.DataFrame], Figure]

    def __call__(self, table: pd.DataFrame) -> Figure:
        """Draw an analysis's table."""
        with paper_style():
            return self.draw(self.data(table))


@dataclass(frozen=True, kw_only=True)
class Analysis:
    """One analysis, as its module declares it.

    Attributes:
        name: the module's name, `python -m analyses.NAME`.
        description: what its numbers mean: the module's docstring, shown by --help.
        question: what it asks, in one line without a capital letter.
        needs: what it reads from a run.
        compute: makes the tidy table of a run, given `steps`, `modules` (None: all) and the
            options by keyword; of a list of runs where `compares` is true.
        plot: the figure.
        summarize: the few numbers that are printed and kept in NAME.json.
        reading: how to read the figure, in plain words, as HTML for the report.
        options: its own options: keyword of `compute` to arguments of argparse's `add_argument`.
        compares: whether `compute` takes all runs together.
        position: its place in lists and in the report, ascending.
    """

    name: str
    description: str | None
    question: str
    compute: Callable[..., pd.DataFrame]
    plot: Plot
    summarize: Callable[[pd.DataFrame], Summary]
    needs: Needs = Needs.FACTORS | Needs.CORES
    reading: str = ""
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    compares: bool = False
    position: int = 100
