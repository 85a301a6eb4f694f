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
keep_prob. Writes the tables, paper_tables.md, figure2 and figure3.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import pandas as pd

from analyses import kit
from analyses.comparisons.configurations import COLUMNS as SETTINGS
from analyses.comparisons.configurations import settings_text
from analyses.comparisons.scores import excluded_runs
from analyses.paper_tables.figures import draw_pruning_rates, draw_ranks
from analyses.paper_tables.layout import as_markdown
from analyses.paper_tables.published import AVERAGE, LLAMA2, TABLE_5, TABLES, RankRow, Row, Table
from analyses.paper_tables.results import Result, collect
from subspace_lab.runs.run import Run
from subspace_lab.stats.intervals import accuracy_over_seeds, mean_interval

COLUMNS = [
    "table", "model", "method", "parameters", "settings", *SETTINGS, "prune_prob",
    "column", "published", "printed", "note", "row_note",
    "mean", "low", "high", "seeds", "examples",
]  # fmt: skip

Published = TypeVar("Published")


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
    rows = [row for table in TABLES for row in _table_rows(table, results[table.number])]
    table = pd.DataFrame([*rows, *_rank_rows(results[1])], columns=COLUMNS)
    table.attrs["remarks"] = excluded_runs(known, on_all_tasks=False)
    return table


def _beside(
    published: Sequence[Published],
    results: Sequence[Result],
    same: Callable[[Published, Result], bool],
) -> Iterator[tuple[Published | None, Result | None, bool]]:
    """Yield published rows with their results, and whether it is the row's first; then the rest."""
    left = list(results)
    for row in published:
        matching = [result for result in left if same(row, result)]
        left = [result for result in left if result not in matching]
        for place, result in enumerate(matching or [None]):
            yield row, result, place == 0
    for result in left:
        yield None, result, False


def _table_rows(table: Table, results: Sequence[Result]) -> Iterator[dict[str, Any]]:
    """Make the rows of Tables 1 to 4."""

    def same(row: Row, result: Result) -> bool:
        alike = (row.model, row.method, row.rank) == (result.model, result.method, result.rank)
        # Full fine-tuning is in the paper as cited rows only.
        return alike and (not row.cited or row.method == "Full")

    titles = [*table.columns.values()] + [AVERAGE] * (len(table.columns) > 1)
    for published, result, first in _beside(table.rows, results, same):
        printed: Mapping[str, str] = {}
        notes: Mapping[tuple[str, str, str], str] = {}
        if first and published:
            printed, notes = dict(zip(titles, published.printed, strict=True)), table.notes
        known, shown = published or result, published if first else result
        assert known is not None and shown is not None
        place = (known.model, known.label)
        for title in titles:
            yield {
                "table": table.number,
                "model": place[0],
                "method": place[1],
                "parameters": shown.parameters,
                "rank": table.rank,
                **_settings(result),
                "column": title,
                **_published(printed.get(title)),
                "note": notes.get((*place, title), ""),
                "row_note": notes.get((*place, ""), ""),
                **_measured(result, title, scale=table.scale),
            }


def _rank_rows(results: Sequence[Result]) -> Iterator[dict[str, Any]]:
    """Make the rows of Table 5: the commonsense average by method, rank and pruning rate."""

    def same(row: RankRow, result: Result) -> bool:
        of_result = (result.model, result.method, result.rank, result.prune_prob)
        return (LLAMA2, row.method, row.rank, row.prune_prob) == of_result

    shown = [result for result in results if result.method in ("LoRA", "DropLoRA")]
    for published, result, first in _beside(TABLE_5, shown, same):
        known = published or result
        assert known is not None
        yield {
            "table": 5,
            "model": known.model,
            "method": known.method,
            "rank": known.rank,
            "prune_prob": known.prune_prob,
            **_settings(result),
            "column": AVERAGE,
            **_published(f"{published.accuracy:.1f}" if first and published else None),
            "note": "",
            "row_note": "",
            **_measured(result, AVERAGE, scale=TABLES[0].scale),
        }


def _settings(result: Result | None) -> dict[str, Any]:
    if result is None:
        return {"settings": ""}
    columns = {name: result.settings[name] for name in SETTINGS}
    text = settings_text(result.settings, with_rank=True)
    return {"settings": text, **columns, "prune_prob": result.prune_prob}


def _published(printed: str | None) -> dict[str, Any]:
    return {"published": None if printed is None else float(printed), "printed": printed or ""}


def _measured(result: Result | None, title: str, *, scale: float) -> dict[str, Any]:
    values = result.scores.get(title, []) if result else []
    if not values or result is None:
        return {"seeds": 0}
    examples = result.examples.get(title, min(result.examples.values()))
    interval = (
        accuracy_over_seeds(values, examples=examples) if scale == 100 else mean_interval(values)
    )
    return {
        "mean": scale * float(interval.estimate),
        "low": scale * float(interval.low),
        "high": scale * float(interval.high),
        "seeds": len(values),
        "examples": examples,
    }


def summarize(table: pd.DataFrame) -> kit.Summary:
    """Count the cells of each table that were measured."""
    measured = (table["seeds"] > 0).groupby(table["table"])
    return {
        f"Table {number}": f"{cells.sum()} of {len(cells)} cells measured"
        for number, cells in measured
    }


ANALYSIS = kit.Analysis(
    name="paper_tables",
    description=__doc__,
    question="the paper's tables, published beside measured",
    needs=kit.Needs(0),
    compute=compute,
    plot={"figure2": kit.Plot(draw_pruning_rates), "figure3": kit.Plot(draw_ranks)},
    summarize=summarize,
    texts={"md": as_markdown},
    on_screen=as_markdown,
    compares=True,
    selects=False,
    without_runs=True,
    csv=True,
    position=120,
)
