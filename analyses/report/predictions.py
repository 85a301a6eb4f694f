"""The predictions of theory that were tested, counted by theorem, and those that failed."""

from __future__ import annotations

import html

import pandas as pd

from analyses.kit.verdicts import verdict_html
from analyses.mask_theory.figure import THEOREMS, disagreements
from analyses.report.tables import table_html


def counted(table: pd.DataFrame) -> pd.DataFrame:
    """Keep the comparisons with a verdict, what several runs share once."""
    return table[table["agrees"].notna() & ~table["repeats"].astype(bool)]


def theorems_table(table: pd.DataFrame) -> str:
    """Render how many comparisons of each theorem agree, and what disagrees in words.

    Args:
        table: of `analyses.mask_theory`.
    """
    tested = counted(table).assign(statement=lambda rows: rows["statement"].astype(str))
    lines = []
    for theorem, rows in tested.groupby("statement", sort=False):
        agree, all_ = int(rows["agrees"].sum()), len(rows)
        verdict = "agree" if agree == all_ else "disagree"
        about = html.escape(THEOREMS.get(str(theorem), ""))
        lines.append([str(theorem), about, f"{agree} of {all_}", verdict_html(verdict)])
    failed = "".join(f"<li>{html.escape(line)}</li>" for line in disagreements(table))
    heads = ["theorem", "about", "comparisons that agree", "verdict"]
    return table_html(heads, lines) + (f"<ul>{failed}</ul>" if failed else "")
