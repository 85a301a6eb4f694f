"""The paper's tables as Markdown, from the tidy table of `paper_tables.compute`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from analyses.published import TABLES

if TYPE_CHECKING:
    import pandas as pd

TITLES = {table.number: table.title for table in TABLES}
TITLES[5] = "Ranks and pruning rates, average commonsense accuracy (%)"
PREAMBLE = """\
Cells read: published / measured mean ± half width of its 95 % interval (seeds). Published values
are of one run each; (cited) rows are those that the paper took from other papers.
"""


def as_markdown(table: pd.DataFrame) -> str:
    """Write Tables 1 to 5; a cell is "published / measured ± half width (seeds)"."""
    parts = [_one(number, table[table["table"] == number]) for number in TITLES]
    return "\n".join([PREAMBLE, *parts])


def _one(number: int, rows: pd.DataFrame) -> str:
    columns = list(dict.fromkeys(rows["column"]))
    described = ["rank", "pruning rate"] if number == 5 else ["# parameters"]
    header = ["model", "method", *described, "measured with", *columns]
    lines = [
        f"Table {number}. {TITLES[number]}",
        "",
        _line(header),
        _line(["---"] * len(header)),
    ]
    notes: list[str] = []
    width = len(columns)
    for start in range(0, len(rows), width):
        cells: list[dict[str, Any]] = [
            dict(zip(rows.columns, row, strict=True))
            for row in rows.iloc[start : start + width].itertuples(index=False)
        ]
        first = cells[0]
        if number == 5:
            facts = [str(first["rank"]), f"{first['prune_prob']:g}"]
        else:
            facts = [first["parameters"]]
        method = first["method"] + _mark(first["row_note"], notes)
        values = [_cell(cell, notes) for cell in cells]
        lines.append(_line([first["model"], method, *facts, first["settings"], *values]))
    lines += [""] + [f"[{i}] {note}." for i, note in enumerate(notes, start=1)]
    lines += _remark(rows)
    return "\n".join(lines) + "\n"


def _cell(cell: dict[str, Any], notes: list[str]) -> str:
    published = cell["printed"] + _mark(cell["note"], notes)
    if not cell["seeds"]:
        return f"{published} /" if published else ""
    measured = f"{cell['mean']:.2f}"
    if not _missing(cell["low"]):
        measured += f" ± {(cell['high'] - cell['low']) / 2:.2f}"
    return f"{published} / {measured} ({cell['seeds']:g})".strip()


def _mark(note: str, notes: list[str]) -> str:
    if not note:
        return ""
    notes.append(note)
    return f" [{len(notes)}]"


def _remark(rows: pd.DataFrame) -> list[str]:
    measured = rows[rows["seeds"] > 0]
    if measured.empty:
        return ["Nothing of this table was run."]
    fewest = measured.groupby("column", sort=False)["examples"].min()
    told = ", ".join(f"{column} {count:g}" for column, count in fewest.items())
    return [f"Measured on at least so many test rows: {told}."]


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _missing(value: Any) -> bool:
    return value is None or math.isnan(value)
