"""The paired differences as Markdown tables, and their figure."""

from __future__ import annotations

import textwrap
from typing import Any

import pandas as pd

from analyses import kit
from analyses.comparisons.rates import EQUAL, OWN
from analyses.comparisons.scores import AVERAGE
from analyses.comparisons.texts import (
    MEASURES,
    cells_by,
    difference_text,
    grid,
    mean_text,
    remarks_text,
)

RATES = {
    EQUAL: "at equal learning rate",
    OWN: "each at its own learning rate, chosen on validation examples",
}
MAX_NAME = 40  # characters in a line
NAME_CHARACTER = 0.043  # inches, on average
PANEL_WIDTH = 3.3  # inches, with the names of configurations beside it


def as_markdown(table: pd.DataFrame) -> str:
    """Write means and differences to the baseline for each measure, and the remarks.

    Differences at equal rates have a table of their own, and so have those of each at its own.
    """
    baseline = table["baseline"].iloc[0]
    tried = ", ".join(f"{rate:g}" for rate in sorted(table["learning_rate"].unique()))
    if OWN in set(table["rates"]):
        note = f"s: {tried}; methods are compared at equal rates and each at its own."
    else:
        note = (
            f": {tried}. Methods are compared at equal rate only, so it is open which one is "
            "better with each at its own best rate: train several rates, evaluated on validation "
            "examples (`analyses.learning_rates`)."
        )
    parts = [f"Learning rate{note}"]
    for measure, (title, unit, _, _) in MEASURES.items():
        rows = table[table["measure"] == measure]
        if rows.empty:
            continue
        tasks = list(dict.fromkeys(rows["task"]))
        parts += [
            f"{title} ({unit}): mean ± half width, or ends, of its 95 % interval over seeds "
            "(seeds)",
            grid("configuration", tasks, cells_by("task", tasks, rows, _with_seeds)),
        ]
        for rates, words in RATES.items():
            paired = rows[(rows["rates"] == rates) & rows["paired_seeds"].notna()]
            if not paired.empty:
                compared = list(dict.fromkeys(paired["task"]))
                parts += [
                    f"{title} ({unit}): paired difference to {baseline} {words}, 95 % interval "
                    "over seeds (standard error over test examples)",
                    grid(
                        "configuration", compared, cells_by("task", compared, paired, _with_error)
                    ),
                ]
    return "\n\n".join([*parts, *remarks_text(table)]) + "\n"


def _with_seeds(row: Any) -> str:
    return f"{mean_text(row)} ({row.seeds})"


def _with_error(row: Any) -> str:
    _, _, scale, form = MEASURES[row.measure]
    return f"{difference_text(row)} ({scale * row.examples_error:{form}})"


def over_all_tasks(table: pd.DataFrame) -> pd.DataFrame:
    """Give the differences over all tasks together, or of each task where there are none."""
    paired = table[table["paired_seeds"].notna()]
    averages = paired[paired["task"] == AVERAGE]
    return paired if averages.empty else averages


def draw(table: pd.DataFrame, page: kit.Page) -> None:
    """Draw the difference to the baseline of each configuration, over all tasks together."""
    rows = over_all_tasks(table)
    places = rows["configuration"]
    if rows["task"].nunique() > 1:
        places = places + ", " + rows["task"]
    names = list(dict.fromkeys(places))[::-1]
    shown = [measure for measure in MEASURES if measure in set(rows["measure"])]
    axes = page.panels(shown, row_height=0.75 + 0.27 * len(names), panel_width=PANEL_WIDTH)
    in_line = min(MAX_NAME, int(0.45 * page.width / page.columns / NAME_CHARACTER))
    labels = [textwrap.fill(name, in_line) for name in names]
    widest = max(len(line) for label in labels for line in label.splitlines())
    for measure, panel in axes.items():
        title, unit, scale, _ = MEASURES[measure]
        of_measure = rows[rows["measure"] == measure]
        low = of_measure["difference"] - of_measure["difference_low"]
        high = of_measure["difference_high"] - of_measure["difference"]
        panel.axvline(0, color="0.6", linewidth=0.6)
        x, y = scale * of_measure["difference"], places[of_measure.index].map(names.index)
        ends = [scale * low, scale * high]
        for name, of_one in of_measure.groupby("configuration", sort=False):
            at, style = of_one.index, {"linestyle": "", "capsize": 2, **page.style(str(name))}
            panel.errorbar(x[at], y[at], xerr=[end[at] for end in ends], **style)
        panel.set_yticks(range(len(names)), labels, fontsize=5.5)
        panel.set_ylim(-0.6, len(names) - 0.4)
        page.set_title(panel, title.lower(), names=NAME_CHARACTER * widest)
        panel.set_xlabel("percentage points" if unit == "%" else unit)
    rates = "at equal and own rates" if OWN in set(table["rates"]) else RATES[EQUAL]
    seeds, tests = int(rows["paired_seeds"].min()), int(rows["examples"].min())
    page.title(
        f"Difference to {table['baseline'].iloc[0]}, {rates}\n"
        f"{seeds} seeds, 95 % t intervals; {tests} test examples per task"
    )
