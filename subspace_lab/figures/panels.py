"""Panels of curves, drawn from a table of their numbers.

Color and marker tell runs or configurations apart, and dashes what is drawn of each; with one run,
color and dashes both tell what is drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
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
Styles = Mapping[tuple[Hashable, Hashable], Mapping[str, Any]]


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
    over_steps = [panel.name for panel in drawn if panel.over == "step"]
    of_steps = measured[measured["panel"].isin(over_steps)]
    one_step = bool(over_steps) and of_steps.groupby("group")["step"].nunique().eq(1).all()
    as_points = {p.name: p.over is None or (one_step and p.over == "step") for p in drawn}
    share_x = len({panel.over for panel in drawn}) == 1 and not any(as_points.values())
    height = 1.15 if len(drawn) > 3 else 1.3 if len(drawn) > 1 else 1.8
    figure, axes = new_figure(max(1, len(drawn)), row_height=height, share_x=share_x)
    for axis, panel in zip(axes[:, 0], drawn, strict=False):
        rows = curves[curves["panel"] == panel.name].sort_values("kind", kind="stable")
        if as_points[panel.name]:
            _draw_points(axis, rows, styles)
        else:
            over = panel.over or ""
            _draw_curves(axis, rows, over, styles)
            if not share_x or panel is drawn[-1]:
                step_axis(axis, label=NAMES.get(over, over))
        if (rows["kind"] == "predicted").any():
            axis.plot([], [], label=panel.expected_label, **PREDICTION)
        axis.set(title=panel.name, ylabel=panel.unit, yscale=panel.scale, ylim=panel.limits)
        if panel.degrees and panel.scale == "linear":
            axis.yaxis.set_major_locator(MaxNLocator(nbins=4, steps=[1, 1.5, 3, 6, 10]))
    lines = [name for name, points in as_points.items() if not points]
    if lines:
        _name_dashes(axes[0, 0], measured[measured["panel"].isin(lines)])
    figure.suptitle(f"{title}\n{sample_note(measured)}", fontsize="medium")
    legend_below(figure, axes[:, 0])
    return figure


def curve_styles(curves: pd.DataFrame) -> Styles:
    """Give each curve its color, dashes, marker and label, by (group, name shown)."""
    groups, names = list(dict.fromkeys(curves["group"])), list(dict.fromkeys(curves["shown"]))
    several, runs = len(groups) > 1, curves.groupby("group")["runs"].max()
    seeds = {group: f" ({count} seeds)" * (count > 1) for group, count in runs.items()}
    return {
        (group, name): {
            "color": PALETTE[(g if several else i) % len(PALETTE)],
            "linestyle": LINES[(i if len(names) > 1 else g) % len(LINES)],
            "marker": MARKERS[(g if several else i) % len(MARKERS)],
            "label": group + seeds[group] if several else name or None,
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


def _draw_curves(axis: Axes, rows: pd.DataFrame, over: str, styles: Styles) -> None:
    several = _several(styles)
    for (kind, group, name), curve in rows.groupby(["kind", "group", "shown"], sort=False):
        style = dict(styles[group, name])
        if kind == "predicted":
            style = PREDICTION | ({"color": style["color"]} if several else {})
        elif len(curve) > FEW_STEPS:
            style.pop("marker")
        x, low, high = curve[over], curve["low"], curve["high"]
        axis.plot(x, curve["center"], **style)
        if kind == "measured" and len(curve) == 1:
            axis.vlines(x, low, high, color=style["color"], alpha=0.5)
        elif low.notna().any():
            axis.fill_between(x, low, high, color=style["color"], alpha=0.15, lw=0)


def _draw_points(axis: Axes, rows: pd.DataFrame, styles: Styles) -> None:
    """Draw names side by side, with medians and bands."""
    names, groups = list(dict.fromkeys(rows["shown"])), list(dict.fromkeys(rows["group"]))
    for (kind, group, name), point in rows.groupby(["kind", "group", "shown"], sort=False):
        x = names.index(name) + 0.6 * ((groups.index(group) + 0.5) / len(groups) - 0.5)
        if kind == "predicted":
            axis.hlines(point["center"], x - 0.2, x + 0.2, **PREDICTION)
            continue
        style: dict[str, Any] = {"color": "0.2", "marker": "o", "label": None}
        if _several(styles):
            style = {key: styles[group, name][key] for key in style}
        ends = np.abs(point[["low", "high"]].sub(point["center"], axis=0).to_numpy().T)
        style |= {"yerr": np.nan_to_num(ends), "elinewidth": 0.8, "capsize": 2}
        axis.errorbar([x], point["center"], linestyle="", **style)
    axis.set_xticks(range(len(names)), names, rotation=25 if len(names) > 5 else 0)
    axis.set_xlim(-0.6, len(names) - 0.4)


def _several(styles: Styles) -> bool:
    """Tell whether several runs or configurations are drawn."""
    return len({group for group, _ in styles}) > 1


def _name_dashes(axis: Axes, curves: pd.DataFrame) -> None:
    """Add what the dashes mean to the legend, where colors tell the groups apart."""
    names = list(dict.fromkeys(curves["shown"]))
    if curves["group"].nunique() > 1 and len(names) > 1:
        for name, line in zip(names, LINES, strict=False):
            axis.plot([], [], color="0.3", linestyle=line, label=name or None)
