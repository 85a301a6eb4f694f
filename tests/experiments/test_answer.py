"""The answer's tables are those of the results beside it, and its figures are there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

from experiments.measured import measured_differences
from experiments.tables import MARKED, marked_tables, with_tables

DOCS = Path(__file__).parents[2] / "docs"
ANSWER = DOCS / "why-rank-dropout.md"
RESULTS = DOCS / "experiments" / "results"
NUMBER = r"[-+]?\d*\.\d+"
INTERVAL = re.compile(
    rf"(?P<difference>{NUMBER})(?P<unit>(?:\s[a-z]+){{0,4}})\s"
    rf"\[(?P<low>{NUMBER}),\s(?P<high>{NUMBER})\]"
)
"""Such as ".056 nats per token [.030, .082]" and "6.0 points [2.1, 9.8]"."""


def test_the_tables_are_those_of_the_results():
    text = ANSWER.read_text("utf-8")
    assert list(marked_tables(text))
    assert with_tables(text, RESULTS) == text


def test_the_figures_are_there():
    figures = re.findall(r"!\[[^]]+\]\(([^)]+)\)", ANSWER.read_text("utf-8"))
    assert figures
    assert [path for path in figures if not (DOCS / path).is_file()] == []


def not_measured(text: str, differences: pd.DataFrame) -> Iterator[str]:
    """Name the intervals of a text that no measured difference rounds to, whichever its sign."""
    for match in INTERVAL.finditer(MARKED.sub("", text)):
        quoted = [match[name] for name in ("difference", "low", "high")]
        scale = 100 if "point" in match["unit"] else 1
        rows = scale * differences[["difference", "low", "high"]]
        flipped = -rows[["difference", "high", "low"]].to_numpy()
        allowed = [0.501 * 10.0 ** -len(number.partition(".")[2]) for number in quoted]
        off = [abs(of - [float(number) for number in quoted]) for of in (rows.to_numpy(), flipped)]
        if not any((one <= allowed).all(axis=1).any() for one in off):
            yield match[0]


def test_the_intervals_of_the_text_are_those_of_the_results():
    text = ANSWER.read_text("utf-8")
    assert len(INTERVAL.findall(MARKED.sub("", text))) >= 10
    assert list(not_measured(text, measured_differences(RESULTS))) == []


@pytest.mark.parametrize(
    ("text", "stale"),
    [
        ("lowers the loss by .056 nats per token [.030, .082]", 0),
        ("it is -.056 [-.082, -.030]", 0),
        ("raises exact match by 5.6 points\n  [3.0, 8.2]", 0),
        ("it is -.056 [-.082, -.031]", 1),
        ("it is +.056 [-.082, -.030]", 1),
        ("by 5.6 points [3.0, 8.3], and by .057 [.030, .082]", 2),
        ("by .06 [.03, .08]", 0),
    ],
)
def test_a_stale_interval_in_the_text_is_found(text, stale):
    differences = pd.DataFrame({"difference": [-0.0561], "low": [-0.0819], "high": [-0.0302]})
    assert len(list(not_measured(text, differences))) == stale
