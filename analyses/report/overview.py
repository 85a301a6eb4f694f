"""The table of the runs: a row for each configuration, whose seeds are averaged."""

from __future__ import annotations

import html
from collections.abc import Iterator
from typing import Any

import pandas as pd

from analyses.report.tables import several, table_html
from subspace_lab.stats.intervals import mean_interval

RESCALES = {
    "none": "not rescaled",
    "keep_prob": "× 1/keep_prob",
    "realized": "× 1/the share kept",
}
COLUMNS = (
    "run", "method", "mask", "learning rate", "steps", "loss when evaluated<br>(nats/token)",
    "exact match<br>(95&nbsp;% interval)", "evaluated on", "step time<br>(median)", "size",
)  # fmt: skip
SEEDS = """<p class='remark'>Where several seeds are averaged, intervals are Student's t over \
seeds; of a single run, Wilson's over its examples.</p>"""
CAUTION = """<p class='remark'>Runs with one seed: differences between them are within what \
another seed could change, whatever the examples' interval says.</p>"""


def overview(table: pd.DataFrame) -> str:
    """Render the table of `report.compute` by problem, and what is special about base models."""
    bodies, alone = [], False
    for problem, of_problem in table.groupby("problem", sort=False):
        by_configuration = of_problem.groupby("configuration", sort=False)
        groups = [rows for _, rows in by_configuration]
        alone |= any(len(group) == 1 for group in groups)
        several_problems = table["problem"].nunique() > 1
        title = f"<h3>{html.escape(str(problem))}</h3>" if several_problems else ""
        bodies.append(title + table_html(COLUMNS, [list(_cells(group)) for group in groups]))
    remarks = sorted(filter(None, set(table["base_remark"])))
    of_bases = (f"<p class='remark'>Base model {html.escape(remark)}.</p>" for remark in remarks)
    return "".join(bodies) + "".join(of_bases) + SEEDS + CAUTION * alone


def _cells(rows: pd.DataFrame) -> Iterator[str]:
    """Yield the cells of a configuration; empty where it has no such number."""
    first: Any = next(rows.itertuples())
    yield several(rows["run"].tolist())
    yield html.escape(first.method)
    yield html.escape(_mask(first))
    yield f"{first.learning_rate:g}" if first.learning_rate > 0 else ""
    yield str(first.steps)
    numbers = ["first_loss", "last_loss", "first_exact_match", "step_seconds"]
    mean = rows[numbers].astype(float).mean(skipna=False)
    if first.examples > 0:
        low, last, high = first.exact_match_low, first.last_exact_match, first.exact_match_high
        if len(rows) > 1:
            interval = mean_interval(rows["last_exact_match"])
            low, last, high = interval.low, interval.estimate, interval.high
        yield f"{mean['first_loss']:.2f} → {mean['last_loss']:.2f}"
        ends = f"[{max(low, 0):.2f}, {min(high, 1):.2f}]"
        yield f"{mean['first_exact_match']:.2f} → {last:.2f} {ends}"
        yield html.escape(f"{first.examples:g} {first.split} examples")
    else:
        yield from ("", "", "nothing")
    yield f"{mean['step_seconds']:.2f} s" if first.step_seconds > 0 else ""
    yield f"{rows['bytes'].sum() / 2**20:.0f} MiB"


def _mask(row: Any) -> str:
    if pd.isna(row.granularity):
        return "none"
    kind = "" if row.sampling == "bernoulli" else f"{row.sampling}, "
    share = f"keep_prob {row.keep_prob:g}, " if row.keep_prob > 0 else ""
    return f"{kind}per {row.granularity}, {share}{RESCALES[row.rescale]}"
