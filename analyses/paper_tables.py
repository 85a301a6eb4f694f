"""Tables 1 to 6 and Figures 2 and 3 of the DropLoRA paper: published and measured side by side.

    python -m analyses.paper_tables --runs "runs/paper/*" --out paper-tables

Each cell reads "published / measured". Measured is the mean over seeds with the half width of its
95 % interval and the number of seeds: Student's t, for accuracies within 0 and 100 %, and where all
seeds have the same accuracy, Wilson's interval over the test examples. Runs that differ in their
seed only are repetitions, and runs of one base must share data, length of training, test examples
and the way of evaluating. It comes from RUN/evaluations, test examples only (see
`python -m subspace_lab.evaluate`); runs that were not evaluated are named. Blank where nothing was
run; an average only where every column was. Known errors of the published tables carry a footnote.
Table 6, the sizes of the data sets, is as published.

A run stands in the paper's row if base, method and rank are the paper's, and in a row of its own
otherwise. DropLoRA's rows say the mask: its granularity, whether kept directions are rescaled, and
keep_prob. Writes paper_tables.csv, paper_tables.md, figure2 and figure3.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analyses._configurations import (
    check_same_problem,
    mask_settings,
    method_name,
    unusual_settings,
)
from analyses._scores import Scored, check_same_evaluation, excluded_runs, scored_groups
from analyses.published import AVERAGE, LLAMA2, LLAMA3, TABLE_5, TABLES, Table
from subspace_lab.errors import exit_code_2_on_user_error

if TYPE_CHECKING:
    import pandas as pd

    from subspace_lab.runs.run import Run

MODELS = {r"llama-?2-7b": LLAMA2, r"llama-?3-8b": LLAMA3}
COLUMNS = [
    "table", "model", "method", "parameters", "settings", "rank", "prune_prob",
    "column", "published", "printed", "note", "row_note",
    "mean", "low", "high", "seeds", "examples",
]  # fmt: skip


@dataclass(frozen=True)
class Result:
    """What one configuration scored on one table's tasks.

    Attributes:
        model: base model.
        method: as the tables name it.
        parameters: trainable parameters, in millions; empty where the run does not say.
        settings: rank, mask, and what else is unlike most runs of the base, in words.
        rank: r; 0 for full fine-tuning.
        prune_prob: 1 - keep_prob; 0 without a mask.
        scores: by column title, one value per seed, as evaluated.
        examples: by column title, how many test examples at least.
    """

    model: str
    method: str
    parameters: str
    settings: str
    rank: int
    prune_prob: float
    scores: Mapping[str, list[float]]
    examples: Mapping[str, int]


def compute(runs: Iterable[Run]) -> pd.DataFrame:
    """Set published beside measured values of Tables 1 to 5.

    Returns:
        One row per table, row of it and column: `table` (1 to 5), `model`, `method`,
        `parameters` (trainable), `settings` (rank and mask of what was measured), `rank`,
        `prune_prob`, `column`, `published` (nan: none), `printed` (the same, as printed), `note`,
        `row_note` (errors of it), `mean`, `low`, `high` (95 % interval over seeds; nan: not run,
        or one seed), `seeds`, `examples`. Accuracies are in per cent, MT-Bench from 1 to 10.
    """
    import pandas as pd

    known = list(runs)
    rows: list[dict[str, Any]] = []
    for table in TABLES:
        results = collect(table, known)
        rows += _published_rows(table, results)
        if table.number == 1:
            averages = results
    rows += _rank_rows(averages)
    return pd.DataFrame(rows, columns=COLUMNS)


def collect(table: Table, runs: Iterable[Run]) -> list[Result]:
    """Group the runs that were evaluated on a table's tasks by configuration.

    Raises:
        UserError: if runs of one base model differ in problem or evaluation, or two have the same
            configuration and seed.
    """
    bases: dict[str, list[list[Scored]]] = {}
    for group in scored_groups(runs, tasks=table.columns):
        bases.setdefault(model_name(str(group[0].run.config["base"])), []).append(group)
    results = []
    for groups in bases.values():
        scored = [one for group in groups for one in group]
        check_same_problem([one.run for one in scored], but=["base"])
        check_same_evaluation(scored)
        unusual = unusual_settings([group[0].run for group in groups])
        results += [_result(table, group, unusual[group[0].run]) for group in groups]
    return results


def _result(table: Table, members: list[Scored], unusual: str) -> Result:
    first = members[0].run
    config, masked = first.config, first.mask_law is not None
    scores: dict[str, list[float]] = {}
    examples: dict[str, int] = {}
    for summaries in (one.summaries for one in members):
        for task, title in table.columns.items():
            if task in summaries:
                scores.setdefault(title, []).append(summaries[task]["value"])
                found = summaries[task]["examples"]
                examples[title] = min(found, examples.get(title, found))
        if summaries.keys() == table.columns.keys():
            mean = sum(summary["value"] for summary in summaries.values()) / len(table.columns)
            scores.setdefault(AVERAGE, []).append(mean)
    trained = first.description.get("provenance", {}).get("trainable_parameters")
    return Result(
        model=model_name(str(config["base"])),
        method=method_name(first),
        parameters=f"{trained / 1e6:.2f}M" if trained else "",
        settings=_settings(config, unusual, masked=masked),
        rank=0 if config["method"] == "full" else int(config["rank"]),
        prune_prob=round(1 - config["keep_prob"], 6) if masked else 0.0,
        scores=scores,
        examples=examples,
    )


def model_name(base: str) -> str:
    """Name a base model as the paper does, where the paper has it.

    >>> model_name("meta-llama/Llama-2-7b-hf"), model_name("smollm2")
    ('LLaMA2-7B', 'smollm2')
    """
    for pattern, name in MODELS.items():
        if re.search(pattern, base, re.IGNORECASE):
            return name
    return base


def _settings(config: Mapping[str, Any], unusual: str, *, masked: bool) -> str:
    rank = "" if config["method"] == "full" else f"rank {config['rank']}"
    return ", ".join(filter(None, [rank, unusual, mask_settings(config) if masked else ""]))


def _published_rows(table: Table, results: list[Result]) -> list[dict[str, Any]]:
    titles = [*table.columns.values()] + [AVERAGE] * (len(table.columns) > 1)
    left, rows = list(results), []
    for published in table.rows:
        found = [
            result
            for result in left
            if (result.model, result.method) == (published.model, published.method)
            and result.rank == published.rank
            # Full fine-tuning is in the paper as cited rows only.
            and (not published.cited or published.method == "Full")
        ]
        left = [result for result in left if result not in found]
        scores = dict(zip(titles, published.printed, strict=True))
        for i, result in enumerate(found or [None]):
            base = {"table": table.number, "model": published.model, "method": published.label}
            base["parameters"] = published.parameters if i == 0 or not result else result.parameters
            rows += _cells(table, base, titles, scores if i == 0 else {}, result)
    for result in left:
        base = {"table": table.number, "model": result.model, "method": result.method}
        base["parameters"] = result.parameters
        rows += _cells(table, base, titles, {}, result)
    return rows


def _cells(
    table: Table,
    base: dict[str, Any],
    titles: list[str],
    scores: Mapping[str, str],
    result: Result | None,
) -> list[dict[str, Any]]:
    row = base | {
        "settings": result.settings if result else "",
        "rank": result.rank if result else table.rank,
        "prune_prob": result.prune_prob if result else None,
    }
    place = (base["model"], base["method"])
    notes = table.notes if scores else {}
    row["row_note"] = notes.get((*place, ""), "")
    return [
        row
        | {"column": title, "note": notes.get((*place, title), "")}
        | _published(scores.get(title))
        | _measured(result, title, scale=table.scale)
        for title in titles
    ]


def _published(printed: str | None) -> dict[str, Any]:
    return {"published": None if printed is None else float(printed), "printed": printed or ""}


def _measured(result: Result | None, title: str, *, scale: float) -> dict[str, Any]:
    from subspace_lab.stats.intervals import accuracy_over_seeds, mean_interval

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


def _rank_rows(results: list[Result]) -> list[dict[str, Any]]:
    """Make the rows of Table 5: the commonsense average by method, rank and pruning rate."""
    rows, left = [], list(results)
    for published in TABLE_5:
        found = [
            result
            for result in left
            if (result.model, result.method, result.rank, result.prune_prob)
            == (LLAMA2, published.method, published.rank, published.prune_prob)
        ]
        left = [result for result in left if result not in found]
        for i, result in enumerate(found or [None]):
            row = {"model": LLAMA2, "method": published.method, "rank": published.rank}
            row["prune_prob"] = published.prune_prob
            rows.append(row | _rank_cell(result, f"{published.accuracy:.1f}" if i == 0 else None))
    for result in left:
        if result.method in ("LoRA", "DropLoRA"):
            row = {"model": result.model, "method": result.method, "rank": result.rank}
            row["prune_prob"] = result.prune_prob
            rows.append(row | _rank_cell(result, None))
    return rows


def _rank_cell(result: Result | None, printed: str | None) -> dict[str, Any]:
    told = {"settings": result.settings if result else "", "note": "", "row_note": ""}
    place = {"table": 5, "column": AVERAGE}
    measured = _measured(result, AVERAGE, scale=TABLES[0].scale)
    return place | told | _published(printed) | measured


@exit_code_2_on_user_error
def main() -> None:
    """Parse the command line, and print and write tables and figures."""
    parser = argparse.ArgumentParser(
        prog="python -m analyses.paper_tables",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--runs", nargs="*", default=[], help="run directories, or quoted globs")
    parser.add_argument("--out", type=Path, default=Path("paper-tables"), help="where to write")
    parser.add_argument("--format", choices=("png", "pdf", "svg"), default="pdf", help="of figures")
    arguments = parser.parse_args()
    from analyses._paper_figures import draw_pruning_rates, draw_ranks
    from analyses._paper_layout import as_markdown
    from analyses.kit import write_comparison
    from subspace_lab.runs.opening import open_runs

    runs = open_runs(arguments.runs)
    table = compute(runs)
    text = as_markdown(table, remarks=excluded_runs(runs, on_all_tasks=False))
    print(text)
    figures = {"figure2": draw_pruning_rates(table), "figure3": draw_ranks(table)}
    write_comparison(arguments.out, "paper_tables", table, text, figures, arguments.format)


if __name__ == "__main__":
    main()
