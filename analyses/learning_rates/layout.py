"""The comparison at equal rates and at own rates as Markdown tables."""

from __future__ import annotations

from typing import Any

import pandas as pd

from analyses.comparisons.rates import EQUAL, OWN
from analyses.comparisons.scores import ACCURACY
from analyses.comparisons.texts import (
    MEASURES,
    cells_by,
    difference_text,
    grid,
    mean_text,
    remarks_text,
)

OWN_RATE = [
    "own rate (single seeds)",
    "ratio to {baseline}'s",
    "ahead at equal rate",
    "behind at equal rate",
    "open at equal rate",
    "each at its own",
]


def as_markdown(table: pd.DataFrame) -> str:
    """Write for each measure the scores by rate, the differences by rate, and the own rates."""
    baseline = table["baseline"].iloc[0]
    parts = []
    for measure, (title, unit, _, _) in MEASURES.items():
        rows = table[table["measure"] == measure]
        if rows.empty:
            continue
        equal, own = (rows[rows["rates"] == rates] for rates in (EQUAL, OWN))
        rates = sorted(equal["learning_rate"].unique())
        heads = [f"{rate:g}" for rate in rates]
        parts += [
            f"{title} ({unit}) on test examples by learning rate: mean, its 95 % interval over "
            "seeds; bold at the rate with the best mean on validation examples",
            grid("method", heads, _means(equal, own, rates)),
            f"{title} ({unit}): paired difference to {baseline} at equal learning rate, and each "
            "at its own, 95 % interval over seeds",
            grid("method", [*heads, "each at its own"], _differences(equal, own, rates)),
            f"{title}: what a comparison with {baseline} at one rate would have said (by whether "
            "the interval excludes 0), and with each method at its own rate",
            grid(
                "method",
                [head.format(baseline=baseline) for head in OWN_RATE],
                {str(row.configuration): _said(row, equal) for row in own.itertuples()},
            ),
        ]
    names = ", ".join(
        f"{row.configuration} ({row.measure}) at {row.learning_rate:g}"
        for row in table[table["at_edge"].fillna(False)].itertuples()
    )
    if names:
        parts.append(f"At the edge of the grid, so that a better rate may lie beyond it: {names}.")
    return "\n\n".join([*parts, *remarks_text(table)]) + "\n"


def verdict(low: float, high: float, measure: str) -> str:
    """Say what an interval of a difference to the baseline shows: ahead, behind, or open.

    >>> verdict(0.1, 0.3, "accuracy"), verdict(0.1, 0.3, "loss"), verdict(-0.1, 0.3, "loss")
    ('ahead', 'behind', 'open')
    """
    if low > 0 or high < 0:
        return "ahead" if (high < 0) == (measure != ACCURACY) else "behind"
    return "open"


def _means(equal: pd.DataFrame, own: pd.DataFrame, rates: list[float]) -> dict[str, list[str]]:
    chosen = dict(zip(own["configuration"], own["learning_rate"], strict=True))

    def cell(row: Any) -> str:
        text = mean_text(row)
        return f"**{text}**" if row.learning_rate == chosen.get(row.configuration) else text

    return cells_by("learning_rate", rates, equal, cell)


def _differences(
    equal: pd.DataFrame, own: pd.DataFrame, rates: list[float]
) -> dict[str, list[str]]:
    others = equal[equal["configuration"] != equal["baseline"]]
    lines = cells_by("learning_rate", rates, others, difference_text)
    at_own = {row.configuration: difference_text(row) for row in own.itertuples()}
    return {name: [*cells, at_own.get(name, "")] for name, cells in lines.items()}


def _said(row: Any, equal: pd.DataFrame) -> list[str]:
    """Give a method's own rate, the verdicts at equal rates, and that at own rates."""
    edge = " (edge)" if row.at_edge else ""
    chosen = f"{row.learning_rate:g}{edge} ({row.lowest_rate:g} to {row.highest_rate:g})"
    if row.configuration == row.baseline:
        return [chosen, "", "", "", "", ""]
    said: dict[str, list[str]] = {"ahead": [], "behind": [], "open": []}
    paired = equal[(equal["configuration"] == row.configuration) & equal["paired_seeds"].notna()]
    for one in paired.itertuples():
        words = verdict(one.difference_low, one.difference_high, row.measure)
        said[words].append(f"{one.learning_rate:g}")
    own = verdict(row.difference_low, row.difference_high, row.measure)
    return [chosen, f"{row.rate_ratio:g}", *(", ".join(rates) for rates in said.values()), own]
