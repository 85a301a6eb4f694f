"""Panels of curves over optimizer steps, drawn from a table of their numbers.

Colour and marker tell runs or configurations apart, and dashes what is drawn of each; with one
run, colour and dashes both tell what is drawn.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from subspace_lab.figures.style import (
    LINES,
    MARKERS,
    PALETTE,
    PREDICTION,
    legend_below,
    new_figure,
    step_axis,
)

FEW_STEPS = 20  # up to here each point gets its marker


class PanelLike(Protocol):
    """What is drawn of a panel; see `analyses.kit.Panel`."""

    @property
    def name(self) -> str:
        """The title."""
        ...

    @property
    def unit(self) -> str:
        """Label of the vertical axis."""
        ...

    @property
    def labels(self) -> Mapping[str, str]:
        """Names shown for the curves' labels."""
        ...

    @property
    def scale(self) -> str:
        """Scale of the vertical axis."""
        ...

    @property
    def limits(self) -> tuple[float | None, float | None]:
        """Limits of the vertical axis."""
        ...

    @property
    def expected_label(self) -> str:
        """Name of the prediction in the legend."""
        ...


def draw_panels(curves: pd.DataFrame, panels: Sequence[PanelLike], *, title: str) -> Figure:
    """Draw a table of curves, a panel each.

    Args:
        curves: columns panel, group, name, kind (measured, predicted), step, center, low, high,
            band, modules, runs.
        panels: titles, units and scales; panels without a row are left out.
        title: of the figure; what the bands are and the sample sizes are added.
    """
    present = set(curves["panel"])
    shown = [panel for panel in panels if panel.name in present]
    measured = curves[curves["kind"] == "measured"]
    styles = curve_styles(measured)
    one_step = measured.groupby("group")["step"].nunique().eq(1).all()
    height = 1.15 if len(shown) > 1 else 1.8
    figure, axes = new_figure(max(1, len(shown)), row_height=height, share_x=not one_step)
    for axis, panel in zip(axes[:, 0], shown, strict=False):
        rows = curves[curves["panel"] == panel.name]
        if one_step:
            _draw_points(axis, rows, panel, styles)
        else:
            _draw_curves(axis, rows, panel, styles)
        axis.set(title=panel.name, ylabel=panel.unit, yscale=panel.scale)
        low, high = panel.limits
        axis.set_ylim(bottom=low, top=high)
    if not one_step:
        _name_dashes(axes[0, 0], measured, shown)
        step_axis(axes[-1, 0])
    figure.suptitle(f"{title}\n{sample_note(measured)}", fontsize="medium")
    legend_below(figure, axes[:, 0])
    return figure


def curve_styles(curves: pd.DataFrame) -> dict[tuple[str, str], dict[str, Any]]:
    """Give each curve its color, dashes and marker, by (group, name)."""
    groups, names = list(dict.fromkeys(curves["group"])), list(dict.fromkeys(curves["name"]))
    several = len(groups) > 1
    return {
        (group, name): {
            "color": PALETTE[(g if several else i) % len(PALETTE)],
            "linestyle": LINES[i % len(LINES)],
            "marker": MARKERS[(g if several else i) % len(MARKERS)],
        }
        for g, group in enumerate(groups)
        for i, name in enumerate(names)
    }


def sample_note(curves: pd.DataFrame) -> str:
    """Say what a curve and its band are, with the sample sizes."""
    if curves.empty:
        return ""
    modules = int(curves["modules"].max())
    over = f" over {modules} modules" if modules else ""
    groups = curves.drop_duplicates("group")
    runs = int(groups["runs"].sum())
    if runs == 1:
        return f"{groups['group'].iloc[0]}: median and quartiles{over}"
    if (groups["runs"] == 1).all():
        return f"{runs} runs: median{over}"
    return f"{runs} runs: mean of medians{over}, 95 % t interval over seeds"


def _draw_curves(
    axis: Axes, rows: pd.DataFrame, panel: PanelLike, styles: Mapping[tuple[str, str], Any]
) -> None:
    several = rows["group"].nunique() > 1
    for group, name, curve in _by_curve(rows, "measured"):
        style = dict(styles[group, name])
        if len(curve) > FEW_STEPS:
            style.pop("marker")
        label = _group_label(curve) if several else panel.labels.get(name, name) or None
        axis.plot(curve["step"], curve["center"], label=label, **style)
        axis.fill_between(
            curve["step"], curve["low"], curve["high"], color=style["color"], alpha=0.15, lw=0
        )
    for group, name, curve in _by_curve(rows, "predicted"):
        style = PREDICTION | ({"color": styles[group, name]["color"]} if several else {})
        axis.plot(curve["step"], curve["center"], **style)
    if (rows["kind"] == "predicted").any():
        axis.plot([], [], label=panel.expected_label, **PREDICTION)


def _draw_points(
    axis: Axes, rows: pd.DataFrame, panel: PanelLike, styles: Mapping[tuple[str, str], Any]
) -> None:
    """Draw one step: names side by side, with medians and bands."""
    names, groups = list(dict.fromkeys(rows["name"])), list(dict.fromkeys(rows["group"]))
    several = len(groups) > 1
    for kind in ("measured", "predicted"):
        for group, name, point in _by_curve(rows, kind):
            x = names.index(name) + 0.6 * ((groups.index(group) + 0.5) / len(groups) - 0.5)
            if kind == "predicted":
                axis.hlines(point["center"], x - 0.2, x + 0.2, **PREDICTION)
                continue
            style = styles[group, name] if several else {"color": "0.2", "marker": "o"}
            ends = np.abs(point[["low", "high"]].sub(point["center"], axis=0).to_numpy().T)
            axis.errorbar(
                [x],
                point["center"],
                yerr=np.nan_to_num(ends),
                linestyle="",
                color=style["color"],
                marker=style["marker"],
                capsize=2,
                label=_group_label(point) if several else None,
            )
    if (rows["kind"] == "predicted").any():
        axis.plot([], [], label=panel.expected_label, **PREDICTION)
    axis.set_xticks(range(len(names)), [panel.labels.get(name, name) for name in names])
    axis.set_xlim(-0.6, len(names) - 0.4)


def _by_curve(curves: pd.DataFrame, kind: str) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """Split curves of a kind: group, name, and rows of each."""
    for (group, name), rows in curves[curves["kind"] == kind].groupby(
        ["group", "name"], sort=False
    ):
        yield str(group), str(name), rows


def _group_label(curve: pd.DataFrame) -> str:
    seeds = int(curve["runs"].iloc[0])
    return str(curve["group"].iloc[0]) + (f" ({seeds} seeds)" if seeds > 1 else "")


def _name_dashes(axis: Axes, curves: pd.DataFrame, panels: Sequence[PanelLike]) -> None:
    """Add what the dashes mean to the legend, where colors tell the groups apart."""
    names = list(dict.fromkeys(curves["name"]))
    if curves["group"].nunique() < 2 or len(names) < 2:
        return
    labels = {label: shown for panel in panels for label, shown in panel.labels.items()}
    for name, line in zip(names, LINES, strict=False):
        axis.plot([], [], color="0.3", linestyle=line, label=labels.get(name, name))
