"""The table of the runs: a row for each configuration, whose seeds are averaged."""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd

from analyses.report.tables import several, table_html
from subspace_lab.stats.intervals import Interval, mean_interval

RESCALES = {
    "none": "not rescaled",
    "keep_prob": "× 1/keep_prob",
    "realized": "× 1/the share kept",
}
COLUMNS = (
    "run",
    "method",
    "mask",
    "learning rate",
    "steps",
    "loss when evaluated<br>(nats/token)",
    "exact match<br>(95&nbsp;% interval)",
    "evaluated on",
    "step time<br>(median)",
    "size",
)
SEEDS = """<p class='remark'>Where several seeds are averaged, intervals are Student's t over \
seeds; of a single run, Wilson's over its examples.</p>"""
CAUTION = """<p class='remark'>Runs with one seed: differences between them are within what \
another seed could change, whatever the examples' interval says.</p>"""


def overview(table: pd.DataFrame) -> str:
    """Render the runs of each problem, with what is special about their base models.

    Args:
        table: the overview, from `report.compute`.
    """
    bodies, alone = [], False
    for problem, of_problem in table.groupby("problem", sort=False):
        by_configuration = of_problem.groupby("configuration", sort=False)
        groups = [list(rows.itertuples()) for _, rows in by_configuration]
        alone |= any(len(group) == 1 for group in groups)
        several_problems = table["problem"].nunique() > 1
        title = f"<h3>{html.escape(str(problem))}</h3>" if several_problems else ""
        bodies.append(title + table_html(COLUMNS, [list(_cells(group)) for group in groups]))
    remarks = sorted(filter(None, set(table["base_remark"])))
    of_bases = (f"<p class='remark'>Base model {html.escape(remark)}.</p>" for remark in remarks)
    return "".join(bodies) + "".join(of_bases) + SEEDS + CAUTION * alone


def _cells(rows: Sequence[Any]) -> Iterator[str]:
    """Yield the cells of a configuration; empty where it has no such number."""
    first = rows[0]
    yield several([row.run for row in rows])
    yield html.escape(first.method)
    yield html.escape(_mask(first))
    yield f"{first.learning_rate:g}" if first.learning_rate > 0 else ""
    yield str(first.steps)
    if first.examples > 0:
        match = Interval(
            first.last_exact_match, first.exact_match_low, first.exact_match_high, 0.95, 1
        )
        if len(rows) > 1:
            match = mean_interval([row.last_exact_match for row in rows])
        yield f"{_mean(rows, 'first_loss'):.2f} → {_mean(rows, 'last_loss'):.2f}"
        ends = f"[{max(match.low, 0):.2f}, {min(match.high, 1):.2f}]"
        yield f"{_mean(rows, 'first_exact_match'):.2f} → {match.estimate:.2f} {ends}"
        yield html.escape(f"{first.examples:g} {first.split} examples")
    else:
        yield from ("", "", "nothing")
    yield f"{_mean(rows, 'step_seconds'):.2f} s" if first.step_seconds > 0 else ""
    yield f"{sum(row.bytes for row in rows) / 2**20:.0f} MiB"


def _mask(row: Any) -> str:
    if pd.isna(row.granularity):
        return "none"
    kind = "" if row.sampling == "bernoulli" else f"{row.sampling}, "
    share = f"keep_prob {row.keep_prob:g}, " if row.keep_prob > 0 else ""
    return f"{kind}per {row.granularity}, {share}{RESCALES[row.rescale]}"


def _mean(rows: Sequence[Any], name: str) -> float:
    return float(pd.Series([getattr(row, name) for row in rows]).mean(skipna=False))
