"""The table of predictions in words and in a figure."""

from __future__ import annotations

import numpy as np
import pandas as pd

from analyses import kit

NAMES = {
    "training": "tests of training agree",
    "initialization": "of the initialization",
    "masks drawn": "of the masks drawn",
    "trained model": "of the trained model",
    "identity": "identities",
}
THEOREMS = {
    "T1": "masks and their overlaps",
    "T2": "angles of two masks",
    "T3": "angles of a random frame",
    "T5": "size of masked updates",
    "T6": "ranks of masked updates",
    "T7": "gates and regularizer",
    "T11": "expansion in the gates",
    "T12": "masks as an ensemble",
    "T13": "balance of A and B",
    "T15": "reach of a step",
    "T16": "steps under AdamW and SGD",
}
"""What the theorems of docs/theory.md that a run tests are about."""
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


def draw(table: pd.DataFrame, page: kit.Page) -> None:
    """Draw (measured - predicted) / tolerance of what is compared, with the band of agreement.

    A row holds all predictions of a theorem; a prediction that fails is named beside its point.
    """
    counts = _counts(table)
    table = compared(table).assign(row=lambda rows: rows["statement"].astype(str))
    order = sorted(table["row"].unique(), key=_place)
    places = {theorem: -place for place, theorem in enumerate(order)}
    runs = list(dict.fromkeys(table["run"].astype(str)))
    height = 0.6 + max(0.16, 0.06 * len(runs)) * len(places)
    panels = page.panels(["deviations"], row_height=height)
    axes = panels["deviations"]
    axes.axvspan(-1, 1, color="0.92", zorder=0, label="agreement: ±1 tolerance")
    axes.axvline(0, color="0.6", linewidth=0.6, zorder=0)
    for i, run in enumerate(runs):
        shift = 0.7 * (0.5 - (i + 0.5) / len(runs))
        for indicative, rows in table[table["run"] == run].groupby(table["agrees"].isna()):
            axes.plot(
                _deviations(rows),
                rows["row"].map(places) + shift,
                linestyle="",
                fillstyle="none" if indicative else "full",
                markeredgewidth=0.7,
                clip_on=False,
                zorder=3,
                label=None if indicative else run,
                **page.style(run),
            )
        failed = table[(table["run"] == run) & ~table["agrees"].fillna(True)]
        for x, theorem, name in zip(
            _deviations(failed), failed["row"], failed["prediction"], strict=True
        ):
            axes.annotate(
                name,
                (x, places[theorem] + shift),
                xytext=(-4 if x > 0 else 4, 0),
                ha="right" if x > 0 else "left",
                va="center",
                textcoords="offset points",
                fontsize=5.5,
            )
    axes.plot([], [], linestyle="", marker="o", fillstyle="none", color="0.3", label="indicative")
    axes.set_xlim(-OFF_SCALE, OFF_SCALE)
    axes.set_xticks([-2, -1, 0, 1, 2], ["≤ −2", "−1", "0", "1", "≥ 2"])
    axes.set_xlabel("deviation / tolerance")
    labels = [" ".join(filter(None, [THEOREMS.get(name, ""), f"({name})"])) for name in order]
    axes.set_yticks(list(places.values()), labels)
    axes.set_ylim(-len(places) + 0.4, 0.6)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", color="0.9", linewidth=0.4)
    axes.set_axisbelow(True)
    page.title("; ".join(counts))
    page.legend(panels)


def _place(theorem: str) -> int:
    """Order theorems by number; what belongs to none comes last."""
    number = theorem.removeprefix("T")
    return int(number) if number.isdigit() else len(THEOREMS) + 99


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
