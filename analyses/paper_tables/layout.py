"""The paper's tables as Markdown, from the tidy table of `paper_tables.compute`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from analyses import kit
from analyses.paper_tables.published import TABLE_5, TABLE_6, TABLES
from subspace_lab.stats.intervals import Interval, spread_text

TITLES = {table.number: table.title for table in (*TABLES, TABLE_5)}
PREAMBLE = """\
Cells read: published / measured mean ± half width, or ends, of its 95 % interval (seeds). Published
values are of one run each; (cited) rows are those that the paper took from other papers.
"""


def as_markdown(table: pd.DataFrame) -> str:
    """Write Tables 1 to 6, and the remarks on runs that are not in them.

    A cell of Tables 1 to 5 is "published / measured ± half width (seeds)".
    """
    parts = [_one(number, table[table["table"] == number]) for number in TITLES]
    parts.append(_datasets())
    if remarks := table.attrs.get("remarks"):
        parts += ["Not in the tables:\n", *(f"- {remark}" for remark in remarks)]
    return "\n".join([PREAMBLE, *parts])


def _one(number: int, rows: pd.DataFrame) -> str:
    columns = list(dict.fromkeys(rows["column"]))
    described = ["rank", "pruning rate"] if number == 5 else ["# parameters"]
    notes: list[str] = []
    lines = []
    cells: list[dict[Any, Any]] = rows.to_dict(orient="records")
    for start in range(0, len(cells), len(columns)):
        row = cells[start : start + len(columns)]
        first = row[0]
        by_rank = [str(first["rank"]), f"{first['prune_prob']:g}"]
        facts = by_rank if number == 5 else [first["parameters"]]
        method = first["method"] + _mark(first["row_note"], notes)
        values = [_cell(cell, notes) for cell in row]
        lines.append([first["model"], method, *facts, first["settings"], *values])
    header = ["model", "method", *described, "measured with", *columns]
    return _table(number, TITLES[number], [header, *lines], notes, _examples(rows))


def _cell(cell: dict[str, Any], notes: list[str]) -> str:
    published = cell["printed"] + _mark(cell["note"], notes)
    if not cell["seeds"]:
        return f"{published} /" if published else ""
    interval = Interval(cell["mean"], cell["low"], cell["high"], 0.95, int(cell["seeds"]))
    measured = [f"{cell['mean']:.2f}", spread_text(interval, ".2f"), f"({cell['seeds']:g})"]
    return f"{published} / {' '.join(filter(None, measured))}".strip()


def _mark(note: str, notes: list[str]) -> str:
    if not note:
        return ""
    notes.append(note)
    return f" [{len(notes)}]"


def _examples(rows: pd.DataFrame) -> str:
    measured = rows[rows["seeds"] > 0]
    if measured.empty:
        return "No measured results for this table."
    fewest = measured.groupby("column", sort=False)["examples"].min()
    counts = ", ".join(f"{column} {count:g}" for column, count in fewest.items())
    return f"Minimum number of test examples: {counts}."


def _datasets() -> str:
    notes: list[str] = []
    lines = [["dataset", "domain", "# train", "# test", "answer"]]
    for row in TABLE_6:
        sizes = [row.train + _mark(row.train_note, notes), row.test + _mark(row.test_note, notes)]
        lines.append([row.name, row.domain, *sizes, row.answer])
    return _table(6, "Data sets", lines, notes)


def _table(
    number: int, title: str, lines: Sequence[Sequence[str]], notes: Sequence[str], *remarks: str
) -> str:
    marked = [f"[{place}] {note}." for place, note in enumerate(notes, start=1)]
    parts = [f"Table {number}. {title}", "", kit.markdown_table(lines), "", *marked, *remarks]
    return "\n".join(parts) + "\n"
