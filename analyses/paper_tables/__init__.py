"""Tables 1 to 6 and Figures 2 and 3 of the DropLoRA paper: published and measured side by side.

    python -m analyses.paper_tables --run "runs/paper/*" --out paper-tables

Each cell reads "published / measured". Measured is the mean over seeds with the half width of its
95 % interval and the number of seeds: Student's t, for accuracies within 0 and 100 %, and where all
seeds have the same accuracy, Wilson's interval over the test examples. Runs that differ in their
seed only are repetitions, and runs of one base must share data, length of training, test examples
and evaluation settings. It comes from RUN/evaluations, test examples only (see
`python -m subspace_lab.evaluate`); runs that were not evaluated are listed. Blank where nothing was
run; an average only where every column was. Known errors of the published tables carry a footnote.
Table 6, the sizes of the data sets, is as published. Without --run, all is as published.

A run stands in the paper's row if base, method and rank are the paper's, and in a row of its own
otherwise. DropLoRA's rows say the mask: its granularity, whether kept directions are rescaled, and
keep_prob. Writes the tables, paper_tables.md, and, of what was measured, figure2 and figure3.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from analyses import kit
from analyses.comparisons.configurations import COLUMNS as SETTINGS
from analyses.comparisons.configurations import settings_text
from analyses.comparisons.scores import excluded_runs
from analyses.paper_tables.figures import (
    draw_pruning_rates,
    draw_ranks,
    measured_averages,
    of_commonsense,
)
from analyses.paper_tables.layout import as_markdown
from analyses.paper_tables.published import AVERAGE, TABLE_5, TABLES, Row, Table
from analyses.paper_tables.results import Result, collect
from subspace_lab.runs.run import Run
from subspace_lab.stats.intervals import accuracy_over_seeds, mean_interval

COLUMNS = [
    "table", "model", "method", "parameters", "settings", *SETTINGS, "prune_prob",
    "column", "published", "printed", "note", "row_note",
    "mean", "low", "high", "seeds", "examples",
]  # fmt: skip


def compute(runs: Iterable[Run]) -> pd.DataFrame:
    """Set published beside measured values of Tables 1 to 5.

    Returns:
        One row per table, row of it and column: `table` (1 to 5), `model`, `method`, `parameters`
        (trainable), `settings` (what was measured, in words, and in columns of their own: `rank`,
        the mask, `other_settings`), `prune_prob`, `column`, `published` (nan: none), `printed`
        (the same, as printed), `note`, `row_note` (errors of it), `mean`, `low`, `high` (95 %
        interval over seeds; nan: not run, or one seed), `seeds`, `examples`. Accuracies are in
        per cent, MT-Bench from 1 to 10. The attribute `remarks` lists the runs that are not in it.

    Raises:
        UserError: if runs of one base model differ in problem or evaluation, or two have the same
            configuration and seed.
    """
    known = list(runs)
    results = {table.number: collect(table, known) for table in TABLES}
    results[5] = [result for result in results[1] if result.method in ("LoRA", "DropLoRA")]
    tables = (*TABLES, TABLE_5)
    rows = [row for table in tables for row in _rows(table, results[table.number])]
    table = pd.DataFrame(rows, columns=COLUMNS)
    table.attrs["remarks"] = excluded_runs(known, on_all_tasks=False)
    return table


def _is_of(row: Row, result: Result) -> bool:
    """Tell whether a result is that of a published row."""
    alike = (row.model, row.method, row.rank) == (result.model, result.method, result.rank)
    # Full fine-tuning is in the paper as cited rows only.
    own = not row.cited or row.method == "Full"
    return alike and own and row.prune_prob in (None, result.prune_prob)


def _beside(
    published: Sequence[Row], results: Sequence[Result]
) -> Iterator[tuple[Row | None, Result | None, bool]]:
    """Yield published rows with their results, and whether it is the row's first; then the rest."""
    left = list(results)
    for row in published:
        matching = [result for result in left if _is_of(row, result)]
        left = [result for result in left if result not in matching]
        for place, result in enumerate(matching or [None]):
            yield row, result, place == 0
    for result in left:
        yield None, result, False


def _rows(table: Table, results: Sequence[Result]) -> Iterator[dict[str, Any]]:
    """Make the rows of one of Tables 1 to 5, the last of averages by rank and pruning rate only."""
    averages = table.number == 5
    titles = [*table.columns.values()] * (not averages) + [AVERAGE] * (len(table.columns) > 1)
    for published, result, first in _beside(table.rows, results):
        known, shown = published or result, published if first else result
        assert known is not None and shown is not None
        printed: Mapping[str, str] = {}
        notes: Mapping[tuple[str, str, str], str] = {}
        if first and published:
            printed, notes = dict(zip(titles, published.printed, strict=True)), table.notes
        place = (known.model, published.label if published else known.method)
        for title in titles:
            text = printed.get(title, "")
            yield {
                "table": table.number,
                "model": place[0],
                "method": place[1],
                "parameters": None if averages else shown.parameters,
                "rank": known.rank if averages else table.rank,
                "prune_prob": known.prune_prob if averages else None,
                **_settings(result),
                "column": title,
                "published": float(text) if text else None,
                "printed": text,
                "note": notes.get((*place, title), ""),
                "row_note": notes.get((*place, ""), ""),
                **_measured(result, title, scale=table.scale),
            }


def _settings(result: Result | None) -> dict[str, Any]:
    if result is None:
        return {"settings": ""}
    columns = {name: result.settings[name] for name in SETTINGS}
    text = settings_text(result.settings, with_rank=True)
    return {"settings": text, **columns, "prune_prob": result.prune_prob}


def _measured(result: Result | None, title: str, *, scale: float) -> dict[str, Any]:
    values = result.scores.get(title, []) if result else []
    if not values or result is None:
        return {"seeds": 0}
    examples = result.examples.get(title, min(result.examples.values()))
    interval = (
        accuracy_over_seeds(values, examples=examples) if scale == 100 else mean_interval(values)
    )
    ends = {"mean": interval.estimate, "low": interval.low, "high": interval.high}
    scaled = {name: scale * float(value) for name, value in ends.items()}
    return {**scaled, "seeds": len(values), "examples": examples}


def summarize(table: pd.DataFrame) -> kit.Summary:
    """Count the cells of each table that were measured."""
    return {
        f"Table {number}": f"{cells.sum()} of {len(cells)} cells measured"
        for number, cells in (table["seeds"] > 0).groupby(table["table"])
    }


ANALYSIS = kit.Analysis(
    name="paper_tables",
    description=__doc__,
    question="the paper's tables, published beside measured",
    needs=kit.Needs(0),
    compute=compute,
    plot={
        "figure2": kit.Plot(draw_pruning_rates, measured_averages),
        "figure3": kit.Plot(draw_ranks, of_commonsense),
    },
    summarize=summarize,
    texts={"md": as_markdown},
    compares=True,
    selects=False,
    without_runs=True,
    csv=True,
    position=120,
)
