"""Curves and points of a panel, told apart without color, too.

A long curve has a few markers, at other places than those of the curves beside it; where several
curves have intervals, these stand at the markers.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from subspace_lab.figures.page import Page, slant_names
from subspace_lab.figures.style import LINES, MARKERS, PALETTE

FEW_STEPS = 12  # up to here each point gets its marker
MARKED = 6  # markers of a longer curve
MAX_BANDS = 2  # more hide each other
MAX_LABELS = 8  # of curves by layer, in the legend
Styles = Mapping[tuple[Hashable, Hashable], Mapping[str, Any]]


def curve_styles(curves: pd.DataFrame, page: Page) -> Styles:
    """Give each curve its color, dashes, marker and label, by (group, name shown)."""
    groups = list(dict.fromkeys(curves["group"]))
    names = [name for name in dict.fromkeys(curves["shown"]) if name]
    if curves["split"].any():
        of_groups, several = _styles_of_parts(groups), True
    else:
        seeds = curves.groupby("group")["runs"].max()
        of_groups = {
            group: {
                **page.style(group),
                "linestyle": page.line(group),
                "label": f"{group} ({seeds[group]} seeds)" if seeds[group] > 1 else group,
            }
            for group in groups
        }
        several = page.several
    styles: dict[tuple[Hashable, Hashable], Mapping[str, Any]] = {}
    for group in groups:
        for name in dict.fromkeys(curves["shown"]):
            place = names.index(name) if name else 0
            style = dict(of_groups[group])
            if len(names) > 1 or not several:
                style["linestyle"] = LINES[place % len(LINES)]
            if not several:
                style["color"] = PALETTE[place % len(PALETTE)]
                style["marker"] = MARKERS[place % len(MARKERS)]
                style["label"] = name or None
            styles[group, name] = style
    return styles


def _styles_of_parts(parts: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Give the styles of projections or layers; many have a scale of colors, named in part."""
    many, count = len(parts) > MAX_LABELS, len(parts)
    colors = mpl.colormaps["viridis"](np.linspace(0, 0.9, count)) if many else PALETTE
    named = set(np.linspace(0, count - 1, MAX_LABELS).round()) if many else set(range(count))
    return {
        part: {
            "color": mpl.colors.to_hex(colors[place % len(colors)]),
            "marker": MARKERS[place % len(MARKERS)],
            "linestyle": LINES[place % len(LINES)],
            "label": part if place in named else None,
        }
        for place, part in enumerate(parts)
    }


def draw_curves(
    axis: Axes,
    rows: pd.DataFrame,
    over: str,
    styles: Styles,
    *,
    expected: Mapping[str, Any],
    faint: Sequence[str] = (),
) -> None:
    """Draw the curves of a panel over the column `over`, with bands or intervals.

    `styles` are those of measured curves, and `expected` that of predictions; where several differ,
    each has its curve's color. The curves named in `faint` are drawn pale and thin.
    """
    curves = list(rows.groupby(["kind", "group", "shown"], sort=False))
    measured = [curve for (kind, *_), curve in curves if kind == "measured"]
    banded = sum(bool(curve["low"].notna().any()) for curve in measured)
    different, place = _different_predictions(rows, over), 0
    for (kind, group, name), curve in curves:
        style = dict(styles[group, name])
        x, low, high = curve[over], curve["low"], curve["high"]
        if kind == "predicted":
            if (group, name) in different:
                color = style["color"] if len(different) > 1 else expected["color"]
                axis.plot(x, curve["center"], **{**expected, "color": color})
                if low.notna().any():
                    axis.fill_between(x, low, high, color=color, alpha=0.15, lw=0)
            continue
        if name in faint:
            color = next(style["color"] for (of, _), style in styles.items() if of == group)
            axis.plot(x, curve["center"], color=color, alpha=0.35, linewidth=0.6, label=name)
            continue
        every = 1 if len(curve) <= FEW_STEPS else -(-len(curve) // MARKED)
        marked = slice(place * every // len(measured), None, every)
        place += 1
        axis.plot(x, curve["center"], markevery=marked, **style)
        if banded > MAX_BANDS or len(curve) == 1:
            axis.vlines(x[marked], low[marked], high[marked], color=style["color"], linewidth=0.7)
        elif low.notna().any():
            axis.fill_between(x, low, high, color=style["color"], alpha=0.15, lw=0)


def draw_points(
    axis: Axes, rows: pd.DataFrame, styles: Styles, *, expected: Mapping[str, Any]
) -> None:
    """Draw names side by side, with medians and bands; `expected` is the style of predictions."""
    names, groups = list(dict.fromkeys(rows["shown"])), list(dict.fromkeys(rows["group"]))
    several = len(groups) > 1 or len({style["color"] for style in styles.values()}) > len(names)
    for (kind, group, name), point in rows.groupby(["kind", "group", "shown"], sort=False):
        x = names.index(name) + 0.6 * ((groups.index(group) + 0.5) / len(groups) - 0.5)
        if kind == "predicted":
            half = max(0.1, 0.3 / len(groups))
            axis.hlines(point["center"], x - half, x + half, **expected)
            continue
        style: dict[str, Any] = {"color": "0.2", "marker": "o", "label": None}
        if several:
            style = {key: styles[group, name][key] for key in style}
        ends = np.abs(point[["low", "high"]].sub(point["center"], axis=0).to_numpy().T)
        style |= {"yerr": np.nan_to_num(ends), "elinewidth": 0.8, "capsize": 2}
        axis.errorbar([x], point["center"], linestyle="", **style)
    axis.set_xticks(range(len(names)), names)
    slant_names(axis)
    axis.set_xlim(-0.6, len(names) - 0.4)


def _different_predictions(rows: pd.DataFrame, over: str) -> set[tuple[Hashable, ...]]:
    """Choose the first, by (group, name), of predictions that are equal: it is drawn for all."""
    first: dict[object, tuple[Hashable, ...]] = {}
    predicted = rows[rows["kind"] == "predicted"]
    for place, curve in predicted.groupby(["group", "shown"], sort=False):
        numbers = np.nan_to_num(curve[[over, "center", "low", "high"]].to_numpy(float))
        first.setdefault(tuple(numbers.round(9).ravel()), place)
    return set(first.values())


def limits_of(rows: pd.DataFrame, *, log: bool, whole: bool = False) -> tuple[float, float]:
    """Choose the ends of the vertical axis: all curves, and intervals a third as far again.

    The wide intervals of two or three seeds would otherwise flatten what they are about. With
    `whole` all intervals lie inside.
    """
    predicted = rows[rows["kind"] == "predicted"]
    lines = pd.concat([rows["center"], predicted["low"], predicted["high"]])
    ends = pd.concat([lines, rows["low"], rows["high"]])
    if log:
        lines, ends = np.log10(lines[lines > 0]), np.log10(ends[ends > 0])
    low, high = float(lines.min()), float(lines.max())
    room = math.inf if whole else 0.3 * (high - low) or 0.05 * abs(high) or 1.0
    low, high = max(float(ends.min()), low - room), min(float(ends.max()), high + room)
    margin = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    low, high = low - margin, high + margin
    return (10**low, 10**high) if log else (low, high)
