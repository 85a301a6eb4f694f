"""The answer's tables are those of the results beside it, and its figures are there."""

from __future__ import annotations

import re
from pathlib import Path

from experiments.tables import marked_tables, with_tables

DOCS = Path(__file__).parents[2] / "docs"
ANSWER = DOCS / "why-rank-dropout.md"


def test_the_tables_are_those_of_the_results():
    text = ANSWER.read_text("utf-8")
    assert list(marked_tables(text))
    assert with_tables(text, DOCS / "experiments/results") == text


def test_the_figures_are_there():
    figures = re.findall(r"!\[[^]]+\]\(([^)]+)\)", ANSWER.read_text("utf-8"))
    assert figures
    assert [path for path in figures if not (DOCS / path).is_file()] == []
