"""Scores and differences to the baseline over the learning rate."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator

from analyses import kit
from analyses.comparisons.rates import EQUAL, OWN
from analyses.comparisons.texts import MEASURES
from subspace_lab.figures.page import slant_names

DODGE = 0.09  # of the grid's spacing, between the intervals of two methods


def draw(table: pd.DataFrame, page: kit.Page) -> None:
    """Draw, for each measure, scores over the rate and differences to the baseline.

    Scores at a method's own rate have a ring. Differences are those at equal rate, and right of the
    line each at its own.
    """
    shown = [measure for measure in MEASURES if measure in set(table["measure"])]
    rates = sorted(table["learning_rate"].unique())
    names = list(dict.fromkeys(table["configuration"]))
    own_place = rates[-1] * (rates[-1] / rates[-2]) ** 1.2
    panels = [name for measure in shown for name in (measure, f"{measure}, difference")]
    axes = page.panels(panels, row_height=1.35, share_x=True)
    for measure in shown:
        title, unit, scale, _ = MEASURES[measure]
        rows = table[table["measure"] == measure]
        scores, differences = axes[measure], axes[f"{measure}, difference"]
        page.set_title(scores, title.lower())
        scores.set_ylabel(unit)
        baseline = rows["baseline"].iloc[0]
        page.set_title(differences, f"difference to {baseline}")
        differences.set_ylabel("points" if unit == "%" else unit)
        differences.axhline(0, color="0.6", linewidth=0.6)
        differences.axvline((rates[-1] * own_place) ** 0.5, color="0.6", linewidth=0.6)
        for number, name in enumerate(names):
            of_method = rows[rows["configuration"] == name]
            shift = (rates[1] / rates[0]) ** (DODGE * (number - (len(names) - 1) / 2))
            of_method = of_method.assign(x=of_method["learning_rate"] * shift)
            equal, own = (of_method[of_method["rates"] == rates_] for rates_ in (EQUAL, OWN))
            style = {**page.style(name), "linestyle": page.line(name)}
            _errorbars(scores, equal, ["mean", "low", "high"], scale, label=name, **style)
            scores.plot(
                own["x"], scale * own["mean"], linestyle="", marker="o", markersize=7,
                markerfacecolor="none", markeredgecolor=style["color"],
            )  # fmt: skip
            ends = ["difference", "difference_low", "difference_high"]
            _errorbars(differences, equal, ends, scale, **style)
            at_own = own.assign(x=own_place * shift)
            _errorbars(differences, at_own, ends, scale, **style | {"linestyle": ""})
    for panel in axes.values():
        panel.set_xscale("log")
        panel.xaxis.set_minor_locator(NullLocator())
        panel.set_xticks([*rates, own_place], [*(f"{rate:g}" for rate in rates), "own"])
        slant_names(panel)
        if panel.xaxis.get_tick_params()["labelbottom"]:
            panel.set_xlabel("peak learning rate")
    seeds = int(table["seeds"].min())
    page.title(
        f"{seeds} seeds, 95 % t intervals; {int(table['examples'].min())} test examples\n"
        "ring, own: each method's own rate, chosen on validation"
    )
    page.legend({panels[0]: axes[panels[0]]})


def _errorbars(axes: Axes, rows: pd.DataFrame, ends: list[str], scale: float, **style: Any) -> None:
    value, low, high = (scale * rows.dropna(subset=ends[:1])[name] for name in ends)
    if not value.empty:
        spread = np.nan_to_num(np.stack([value - low, high - value]))
        x = rows["x"][value.index]
        axes.errorbar(x, value, yerr=spread, capsize=1.5, elinewidth=0.7, **style)
