"""The table of predictions in words and in a figure."""

from __future__ import annotations

import textwrap
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analyses import kit
from subspace_lab.figures.style import MARKERS, PALETTE, legend_below, new_figure

NAMES = {
    "training": "tests of training agree",
    "initialization": "of the initialization",
    "masks drawn": "of the masks drawn",
    "trained model": "of the trained model",
    "identity": "identities",
}
TITLE_WIDTH = 62  # characters
OFF_SCALE = 2.2  # deviations in tolerances that are drawn at the edge


def compared(table: pd.DataFrame) -> pd.DataFrame:
    """Keep the rows in which theory and measurement were compared."""
    return table[table["kind"] != "not testable"]


def disagreements(table: pd.DataFrame) -> list[str]:
    """Say in a sentence each what disagrees."""
    return [
        f"{row.run}, {row.where}: {row.prediction} ({row.statement}) predicts {row.predicted:.4g}, "
        f"measured {row.measured:.4g}, allowed ±{row.tolerance:.2g} ({row.basis}; "
        f"n = {row.samples}): {row.meaning}."
        for row in table[~table["agrees"].fillna(True)].itertuples()
    ]


def draw(table: pd.DataFrame) -> Figure:
    """Draw (measured - predicted) / tolerance of what is compared, with the band of agreement."""
    counts = _counts(table)
    table = compared(table)
    order = table.drop_duplicates("prediction")
    places = {name: -place for place, name in enumerate(order["prediction"])}
    figure, grid = new_figure(1, row_height=0.6 + 0.118 * len(places))
    axes: Axes = grid[0, 0]
    axes.axvspan(-1, 1, color="0.92", zorder=0, label="agreement: ±1 tolerance")
    axes.axvline(0, color="0.6", linewidth=0.6, zorder=0)
    runs = list(dict.fromkeys(table["run"]))
    for i, run in enumerate(runs):
        shift = 0.6 * (0.5 - (i + 0.5) / len(runs))
        style: dict[str, Any] = {
            "color": PALETTE[i % len(PALETTE)],
            "marker": MARKERS[i % len(MARKERS)],
        }
        for indicative, rows in table[table["run"] == run].groupby(table["agrees"].isna()):
            axes.plot(
                _deviations(rows),
                rows["prediction"].map(places) + shift,
                linestyle="",
                fillstyle="none" if indicative else "full",
                markeredgewidth=0.7,
                clip_on=False,
                zorder=3,
                label=None if indicative else run,
                **style,
            )
    axes.plot([], [], linestyle="", marker="o", fillstyle="none", color="0.3", label="indicative")
    axes.set_xlim(-OFF_SCALE, OFF_SCALE)
    axes.set_xticks([-2, -1, 0, 1, 2], ["≤ −2", "−1", "0", "1", "≥ 2"])
    axes.set_xlabel("deviation / tolerance")
    labels = [
        f"{row.prediction} ({row.statement})" if row.statement else row.prediction
        for row in order.itertuples()
    ]
    axes.set_yticks(list(places.values()), labels, fontsize=5.5)
    axes.set_ylim(-len(places) + 0.4, 0.6)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", color="0.9", linewidth=0.4)
    axes.set_axisbelow(True)
    title = textwrap.wrap("; ".join(counts), TITLE_WIDTH)
    figure.suptitle("\n".join(title), fontsize=6)
    legend_below(figure, axes, columns=2)
    return figure


def _deviations(rows: pd.DataFrame) -> pd.Series[float]:
    """Give deviations in tolerances; those off the scale, or where none is allowed, at its edge."""
    difference = rows["measured"] - rows["predicted"]
    scaled = difference / rows["tolerance"].where(rows["tolerance"] > 0)
    edge = difference.map(np.sign) * OFF_SCALE
    return scaled.fillna(edge).clip(-2, 2)


def _counts(table: pd.DataFrame) -> list[str]:
    """Count what agrees, first of the tests of training; then what says nothing, and why."""
    counted = table[table["agrees"].notna() & ~table["repeats"]]
    parts = []
    for tests, name in NAMES.items():
        rows = counted[counted["tests"] == tests]
        if len(rows) or tests == "training":
            parts.append(f"{int(rows['agrees'].sum())} of {len(rows)} {name}")
    indicative = table[table["kind"] == "indicative"]
    outside = (indicative["measured"] - indicative["predicted"]).abs() > indicative["tolerance"]
    if len(indicative):
        parts.append(f"{len(indicative)} indicative, {int(outside.sum())} of them off their scale")
    if repeated := int(table["repeats"].sum()):
        parts.append(f"{repeated} with the evidence of another run")
    if powerless := int((table["power"] == float("inf")).sum()):
        parts.append(f"{powerless} that cannot fail at this size")
    if untestable := int((table["kind"] == "not testable").sum()):
        parts.append(f"{untestable} not testable")
    return parts


def summarize(table: pd.DataFrame) -> kit.Summary:
    """Count what agrees by run, and say what does not."""
    counts = {
        str(run): "; ".join(_counts(rows))
        for run, rows in table.groupby("run", observed=True, sort=False)
    }
    sentences = disagreements(table)
    return counts | {f"disagreement {i}": text for i, text in enumerate(sentences, start=1)}
