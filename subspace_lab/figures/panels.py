"""Panels of curves, drawn from a table of their numbers.

Color and marker tell runs or configurations apart, and dashes what is drawn of each; with one run,
color and dashes both tell what is drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, MaxNLocator

from subspace_lab.figures.curves import Styles, curve_styles, draw_curves, draw_points, limits_of
from subspace_lab.figures.page import PANEL_WIDTH, Page, width_of
from subspace_lab.figures.style import LINES, PREDICTION, step_axis

NAMES = {"step": "optimizer step", "index": "i of σᵢ"}  # of horizontal axes
NARROW = 1.3  # inches: six numbers at the axis of such a panel would touch


@dataclass(frozen=True)
class Panel:
    """One panel of a figure: columns of a table over steps.

    Attributes:
        value: the column; or several columns, a curve each, with the names shown.
        title: shown above the panel; the column's name by default.
        unit: label of the vertical axis.
        by: column whose labels get a curve each; None: one curve per run or configuration.
        labels: the labels of `by` that are drawn, in order, with the names shown; empty: all.
        only_alone: labels of `by`, or columns, that are left out where curves of several runs are
            compared.
        faint: names of curves that are drawn pale and thin, in the color of the others.
        where: only rows with these values: column to value.
        rows: makes the rows that are drawn, such as sums over modules, of those of the table.
        over: column of the horizontal axis; None: the names of the curves side by side.
        scale: of the vertical axis; a logarithmic one shows positive values only.
        limits: of the vertical axis; None at an end: from the data.
        degrees: whether the column holds radians that are drawn as degrees.
        expected: column of a prediction, drawn as its mean over modules; `{}` stands for the
            value's column.
        expected_band: columns of the ends of the prediction's band.
        expected_label: how the legend names the prediction.
        expected_style: of its line; `REFERENCE` where it is measured, too.
    """

    value: str | Mapping[str, str]
    title: str = ""
    unit: str = ""
    by: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    only_alone: Sequence[str] = ()
    faint: Sequence[str] = ()
    where: Mapping[str, object] = field(default_factory=dict)
    rows: Callable[[pd.DataFrame], pd.DataFrame] = lambda table: table
    over: str | None = "step"
    scale: Literal["linear", "log"] = "linear"
    limits: tuple[float | None, float | None] = (None, None)
    degrees: bool = False
    expected: str | None = None
    expected_band: tuple[str, str] | None = None
    expected_label: str = "predicted"
    expected_style: Mapping[str, Any] = field(default_factory=lambda: PREDICTION)

    @property
    def name(self) -> str:
        """The panel's title, or the name of its column."""
        return self.title or self.columns[0].replace("_", " ")

    @property
    def columns(self) -> list[str]:
        """The columns that it draws."""
        return [self.value] if isinstance(self.value, str) else list(self.value)


def draw_panels(
    curves: pd.DataFrame,
    page: Page,
    *,
    panels: Sequence[Panel],
    title: str,
    panel_width: float = PANEL_WIDTH,
) -> None:
    """Draw a table of curves, a panel each; with `facet`, each panel once for every facet.

    Args:
        curves: columns panel, facet, split, group, name, shown, kind (measured, predicted), center,
            low, high, band, modules, runs, and those of the panels' horizontal axes.
        page: where to draw.
        panels: titles, units and scales; those without a row are left out.
        title: of the figure; what the bands are and the sample sizes are added.
        panel_width: see `Page.panels`.
    """
    faceted = curves["facet"].nunique() > 1
    named = {
        f"{panel.name}, {facet}" if faceted else panel.name: (panel, rows)
        for panel in panels
        for facet, rows in curves[curves["panel"] == panel.name].groupby("facet", sort=False)
    }
    measured = curves[curves["kind"] == "measured"]
    styles = curve_styles(measured, page)
    points = _drawn_as_points([panel for panel, _ in named.values()], measured)
    share_x = len({panel.over for panel, _ in named.values()}) == 1 and not any(points.values())
    height = 1.15 if len(named) > 3 else 1.3 if len(named) > 1 else 1.8
    height += 0.3 * (len(named) > 3 and not share_x)  # of names at every horizontal axis
    axes = page.panels(
        list(named), row_height=height, panel_width=panel_width, share_x=share_x and len(named) > 1
    )
    for name, axis in axes.items():
        panel, rows = named[name]
        _draw_panel(axis, panel, rows.sort_values("kind", kind="stable"), styles, points)
        page.set_title(axis, name)
    lines = [name for name, as_points in points.items() if not as_points]
    if lines and (page.several or measured["split"].any()):
        _name_dashes(next(iter(axes.values())), measured[measured["panel"].isin(lines)])
    page.title(f"{title}\n{sample_note(measured)}")
    page.legend(axes)


def _draw_panel(
    axis: Axes, panel: Panel, rows: pd.DataFrame, styles: Styles, points: Mapping[str, bool]
) -> None:
    if points[panel.name]:
        draw_points(axis, rows, styles, expected=panel.expected_style)
    else:
        over = panel.over or ""
        draw_curves(axis, rows, over, styles, expected=panel.expected_style, faint=panel.faint)
        step_axis(axis, label=NAMES.get(over, over), ticks=4 if width_of(axis) < NARROW else 6)
        if not axis.xaxis.get_tick_params()["labelbottom"]:  # a panel below has the same axis
            axis.set_xlabel("")
    predicted = rows[rows["kind"] == "predicted"]
    if not predicted.empty:
        axis.plot([], [], label=panel.expected_label, **panel.expected_style)
    if predicted["low"].notna().any():
        axis.fill_between([], [], [], color="0.85", lw=0, label=predicted["band"].iloc[0])
    log = panel.scale == "log"
    low, high = limits_of(rows, log=log, whole=log and points[panel.name])
    ends = [
        end if set_ is None else set_ for set_, end in zip(panel.limits, (low, high), strict=True)
    ]
    axis.set(ylabel=panel.unit, yscale=panel.scale, ylim=ends)
    if log and ends[1] < 30 * ends[0]:  # hardly a power of ten would be labeled
        multiples = (2, 4, 6, 8) if ends[1] < 5 * ends[0] else (2, 5)
        axis.yaxis.set_minor_locator(LogLocator(subs=multiples))
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_formatter("{x:g}")
    if panel.scale == "linear":
        steps = [1, 1.5, 3, 6, 10] if panel.degrees else [1, 2, 2.5, 5, 10]
        axis.yaxis.set_major_locator(MaxNLocator(nbins=5, steps=steps))


def _drawn_as_points(panels: Sequence[Panel], measured: pd.DataFrame) -> dict[str, bool]:
    """Tell of each panel whether it draws points side by side: names, or the runs' only step."""
    of_steps = measured[measured["panel"].isin([p.name for p in panels if p.over == "step"])]
    one_step = not of_steps.empty and bool(of_steps.groupby("group")["step"].nunique().eq(1).all())
    return {p.name: p.over is None or (one_step and p.over == "step") for p in panels}


def sample_note(curves: pd.DataFrame) -> str:
    """Say what a curve and its band are, with the sample sizes."""
    if curves.empty:
        return ""
    modules, split = int(curves["modules"].max()), curves["split"].iloc[0]
    of_modules = f"{modules} modules" + f" of a {split}" * bool(split)
    facets = list(dict.fromkeys(curves["facet"]))
    runs = len(facets) if split else int(curves.drop_duplicates("group")["runs"].sum())
    whose = f"{runs} runs"
    if runs == 1:
        whose = str(facets[0] if split else curves["group"].iloc[0])
    if (curves["runs"] > 1).any():
        center = f"medians over {of_modules}: mean" if modules else f"{whose}: mean"
        return f"{center}, 95 % t interval over seeds"
    spread = " and quartiles" if curves["band"].astype(bool).any() else ""
    return f"{whose}: median{spread} over {of_modules}" if modules else whose


def _name_dashes(axis: Axes, curves: pd.DataFrame) -> None:
    """Add what the dashes mean to the legend, where colors tell the groups apart."""
    names = [name for name in dict.fromkeys(curves["shown"]) if name]
    if len(names) > 1:
        for name, line in zip(names, LINES, strict=False):
            axis.plot([], [], color="0.3", linestyle=line, label=name)
