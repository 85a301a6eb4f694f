"""The paper's tables as Markdown, from the tidy table of `paper_tables.compute`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from analyses.published import TABLES
from analyses.published_datasets import TABLE_6
from subspace_lab.stats.intervals import Interval, spread_text

if TYPE_CHECKING:
    import pandas as pd

TITLES = {table.number: table.title for table in TABLES}
TITLES[5] = "Ranks and pruning rates, average commonsense accuracy (%)"
PREAMBLE = """\
Cells read: published / measured mean ± half width, or ends, of its 95 % interval (seeds). Published
values are of one run each; (cited) rows are those that the paper took from other papers.
"""


def as_markdown(table: pd.DataFrame, *, remarks: Sequence[str] = ()) -> str:
    """Write Tables 1 to 6, and the remarks on runs that are not in them.

    A cell of Tables 1 to 5 is "published / measured ± half width (seeds)".
    """
    parts = [_one(number, table[table["table"] == number]) for number in TITLES]
    if remarks:
        parts += ["Not in the tables:\n", *(f"- {remark}" for remark in remarks)]
    return "\n".join([PREAMBLE, *parts[:5], _datasets(), *parts[5:]])


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
    interval = Interval(cell["mean"], cell["low"], cell["high"], 0.95, int(cell["seeds"]))
    measured = [f"{cell['mean']:.2f}", spread_text(interval, ".2f"), f"({cell['seeds']:g})"]
    return f"{published} / {' '.join(filter(None, measured))}".strip()


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
    return [f"Measured on at least so many test examples: {told}."]


def _datasets() -> str:
    notes: list[str] = []
    header = ["dataset", "domain", "# train", "# test", "answer"]
    lines = ["Table 6. Data sets", "", _line(header), _line(["---"] * len(header))]
    lines += [
        _line(
            [
                row.name,
                row.domain,
                row.train + _mark(row.train_note, notes),
                row.test + _mark(row.test_note, notes),
                row.answer,
            ]
        )
        for row in TABLE_6
    ]
    lines += ["", *(f"[{i}] {note}." for i, note in enumerate(notes, start=1))]
    return "\n".join(lines) + "\n"


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"
