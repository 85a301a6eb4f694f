"""Panels of curves, drawn from a table of their numbers.

Color and marker tell runs or configurations apart, and dashes what is drawn of each; with one run,
color and dashes both tell what is drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from subspace_lab.figures.style import (
    LINES,
    MARKERS,
    PALETTE,
    PREDICTION,
    legend_below,
    new_figure,
    step_axis,
)

NAMES = {"step": "optimizer step"}  # of horizontal axes
FEW_STEPS = 20  # up to here each point gets its marker
Styles = Mapping[tuple[str, str], Mapping[str, Any]]


@dataclass(frozen=True)
class Panel:
    """One panel of a figure: columns of a table over steps.

    Attributes:
        value: the column; or several columns, a curve each, with the names shown.
        title: shown above the panel; the column's name by default.
        unit: label of the vertical axis.
        by: column whose labels get a curve each; None: one curve per run or configuration.
        labels: the labels of `by` that are drawn, in order, with the names shown; empty: all.
        only_alone: labels of `by` that are left out where curves of several runs are compared.
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
    """

    value: str | Mapping[str, str]
    title: str = ""
    unit: str = ""
    by: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    only_alone: Sequence[str] = ()
    where: Mapping[str, object] = field(default_factory=dict)
    rows: Callable[[pd.DataFrame], pd.DataFrame] = lambda table: table
    over: str | None = "step"
    scale: Literal["linear", "log"] = "linear"
    limits: tuple[float | None, float | None] = (None, None)
    degrees: bool = False
    expected: str | None = None
    expected_band: tuple[str, str] | None = None
    expected_label: str = "predicted"

    @property
    def name(self) -> str:
        """The panel's title, or the name of its column."""
        return self.title or self.columns[0].replace("_", " ")

    @property
    def columns(self) -> list[str]:
        """The columns that it draws."""
        return [self.value] if isinstance(self.value, str) else list(self.value)


def draw_panels(curves: pd.DataFrame, panels: Sequence[Panel], *, title: str) -> Figure:
    """Draw a table of curves, a panel each.

    Args:
        curves: columns panel, group, name, shown, kind (measured, predicted), center, low, high,
            band, modules, runs, and those of the panels' horizontal axes.
        panels: titles, units and scales; panels without a row are left out.
        title: of the figure; what the bands are and the sample sizes are added.
    """
    present = set(curves["panel"])
    drawn = [panel for panel in panels if panel.name in present]
    measured = curves[curves["kind"] == "measured"]
    styles = curve_styles(measured)
    as_points = {panel.name: panel.over is None for panel in drawn}
    over_steps = [panel.name for panel in drawn if panel.over == "step"]
    rows_over_steps = measured[measured["panel"].isin(over_steps)]
    if rows_over_steps.groupby("group")["step"].nunique().eq(1).all() if over_steps else False:
        as_points |= dict.fromkeys(over_steps, True)
    share_x = len({panel.over for panel in drawn}) == 1 and not any(as_points.values())
    height = 1.15 if len(drawn) > 3 else 1.3 if len(drawn) > 1 else 1.8
    figure, axes = new_figure(max(1, len(drawn)), row_height=height, share_x=share_x)
    for axis, panel in zip(axes[:, 0], drawn, strict=False):
        rows = curves[curves["panel"] == panel.name]
        if as_points[panel.name]:
            _draw_points(axis, rows, styles)
        else:
            over = panel.over or ""
            _draw_curves(axis, rows, over, styles)
            if not share_x or panel is drawn[-1]:
                step_axis(axis, label=NAMES.get(over, over))
        if (rows["kind"] == "predicted").any():
            axis.plot([], [], label=panel.expected_label, **PREDICTION)
        _set_vertical_axis(axis, panel)
    if not all(as_points.values()):
        _name_dashes(axes[0, 0], measured[measured["panel"].map(as_points) == False])  # noqa: E712
    figure.suptitle(f"{title}\n{sample_note(measured)}", fontsize="medium")
    legend_below(figure, axes[:, 0])
    return figure


def curve_styles(curves: pd.DataFrame) -> Styles:
    """Give each curve its color, dashes, marker and label, by (group, name shown)."""
    groups, names = list(dict.fromkeys(curves["group"])), list(dict.fromkeys(curves["shown"]))
    several, seeds = len(groups) > 1, curves.groupby("group")["runs"].max()
    return {
        (group, name): {
            "color": PALETTE[(g if several else i) % len(PALETTE)],
            "linestyle": LINES[(i if len(names) > 1 else g) % len(LINES)],
            "marker": MARKERS[(g if several else i) % len(MARKERS)],
            "label": _group_label(group, seeds[group]) if several else name or None,
        }
        for g, group in enumerate(groups)
        for i, name in enumerate(names)
    }


def sample_note(curves: pd.DataFrame) -> str:
    """Say what a curve and its band are, with the sample sizes."""
    if curves.empty:
        return ""
    modules = int(curves["modules"].max())
    runs = int(curves.drop_duplicates("group")["runs"].sum())
    whose = str(curves["group"].iloc[0]) if runs == 1 else f"{runs} runs"
    if (curves["runs"] > 1).any():
        center = f"medians over {modules} modules: mean" if modules else f"{whose}: mean"
        return f"{center}, 95 % t interval over seeds"
    spread = " and quartiles" if curves["band"].astype(bool).any() else ""
    return f"{whose}: median{spread} over {modules} modules" if modules else whose


def _set_vertical_axis(axis: Axes, panel: Panel) -> None:
    axis.set(title=panel.name, ylabel=panel.unit, yscale=panel.scale)
    low, high = panel.limits
    axis.set_ylim(bottom=low, top=high)
    if panel.degrees and panel.scale == "linear":
        axis.yaxis.set_major_locator(MaxNLocator(nbins=4, steps=[1, 1.5, 3, 6, 10]))


def _draw_curves(axis: Axes, rows: pd.DataFrame, over: str, styles: Styles) -> None:
    several = _several(styles)
    for group, name, curve in _by_curve(rows, "measured"):
        style = dict(styles[group, name])
        if len(curve) > FEW_STEPS:
            style.pop("marker")
        axis.plot(curve[over], curve["center"], **style)
        if len(curve) == 1:
            axis.vlines(curve[over], curve["low"], curve["high"], color=style["color"], alpha=0.5)
        else:
            _fill(axis, curve, over, style["color"])
    for group, name, curve in _by_curve(rows, "predicted"):
        style = PREDICTION | ({"color": styles[group, name]["color"]} if several else {})
        axis.plot(curve[over], curve["center"], **style)
        _fill(axis, curve, over, style["color"])


def _fill(axis: Axes, curve: pd.DataFrame, over: str, color: str) -> None:
    if curve["low"].notna().any():
        axis.fill_between(curve[over], curve["low"], curve["high"], color=color, alpha=0.15, lw=0)


def _draw_points(axis: Axes, rows: pd.DataFrame, styles: Styles) -> None:
    """Draw names side by side, with medians and bands."""
    names, groups = list(dict.fromkeys(rows["shown"])), list(dict.fromkeys(rows["group"]))
    several = _several(styles)
    for kind in ("measured", "predicted"):
        for group, name, point in _by_curve(rows, kind):
            x = names.index(name) + 0.6 * ((groups.index(group) + 0.5) / len(groups) - 0.5)
            if kind == "predicted":
                axis.hlines(point["center"], x - 0.2, x + 0.2, **PREDICTION)
                continue
            style = styles[group, name]
            if not several:
                style = {"color": "0.2", "marker": "o", "label": None}
            ends = np.abs(point[["low", "high"]].sub(point["center"], axis=0).to_numpy().T)
            axis.errorbar(
                [x],
                point["center"],
                yerr=np.nan_to_num(ends),
                linestyle="",
                color=style["color"],
                marker=style["marker"],
                elinewidth=0.8,
                capsize=2,
                label=style["label"],
            )
    axis.set_xticks(range(len(names)), names, rotation=25 if len(names) > 5 else 0)
    axis.set_xlim(-0.6, len(names) - 0.4)


def _by_curve(curves: pd.DataFrame, kind: str) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """Split curves of a kind: group, name shown, and rows of each."""
    for (group, name), rows in curves[curves["kind"] == kind].groupby(
        ["group", "shown"], sort=False
    ):
        yield str(group), str(name), rows


def _several(styles: Styles) -> bool:
    """Tell whether several runs or configurations are drawn."""
    return len({group for group, _ in styles}) > 1


def _group_label(group: str, seeds: int) -> str:
    return group + (f" ({seeds} seeds)" if seeds > 1 else "")


def _name_dashes(axis: Axes, curves: pd.DataFrame) -> None:
    """Add what the dashes mean to the legend, where colors tell the groups apart."""
    names = list(dict.fromkeys(curves["shown"]))
    if curves["group"].nunique() < 2 or len(names) < 2:
        return
    for name, line in zip(names, LINES, strict=False):
        axis.plot([], [], color="0.3", linestyle=line, label=name or None)
