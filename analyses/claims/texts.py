"""The table of claims as text: for a terminal, in Markdown and in HTML."""

from __future__ import annotations

import html
import textwrap
from typing import Any

import pandas as pd

from analyses.kit import markdown_table
from analyses.kit.verdicts import verdict_html

HEADS = [
    "the paper says",
    "theory says",
    "these runs show",
    "verdict of these runs",
    "the registered experiments found",
]
REMARK = (
    "The registered experiments, X1 to X7 (docs/why-rank-dropout.md), train a small model in "
    "regimes A (label noise), B (few examples) and C (one pass). A difference token - step is "
    "that of token masks minus that of step masks, so a negative one of the loss favors the first. "
    "Differences are paired by seed, each method at its own learning rate where nothing else is "
    "said, with 95 % intervals and p-values corrected by Holm."
)


def to_text(table: pd.DataFrame) -> str:
    """Render the claims for a terminal."""
    blocks = []
    for row in table.itertuples():
        lines = [f"{row.name}: {row.verdict}"]
        for head, text in (
            ("claim", f"{row.claim} ({row.place})"),
            ("theory", f"{row.theory} ({row.statements})"),
            ("runs", row.shown),
            ("others", f"{row.registered_verdict}. {row.registered}".rstrip()),
        ):
            lines += textwrap.wrap(
                f"{head:<7} {text}", 96, initial_indent="  ", subsequent_indent=" " * 10
            )
        blocks.append("\n".join(lines))
    return "\n".join(blocks + _remarks(table))


def to_markdown(table: pd.DataFrame) -> str:
    """Render the claims as a Markdown table."""
    lines = markdown_table([HEADS, *_cells(table)])
    return "\n".join([lines, "", *_remarks(table)]).rstrip() + "\n"


def to_html(table: pd.DataFrame) -> str:
    """Render the claims as HTML: a block for each, since five columns of text fit no screen."""
    first, *others = (f"<p class='remark'>{html.escape(text)}</p>\n" for text in _remarks(table))
    return first + "".join(map(_block, table.itertuples())) + "".join(others)


def _block(row: Any) -> str:
    texts = (row.claim, row.place, row.theory, row.statements, row.shown)
    claim, place, theory, statements, shown = (html.escape(str(text)) for text in texts)
    found = "<br>".join(map(html.escape, str(row.registered).split("; ")))
    return (
        f"<div class='claim'><h3>{claim} <small>{place}</small></h3>\n<ul>"
        f"<li>These runs: {verdict_html(row.verdict)} {shown}</li>\n"
        f"<li>The registered experiments: {verdict_html(row.registered_verdict)} {found}</li>\n"
        f"<li>Theory: {theory} ({statements})</li></ul></div>\n"
    )


def _cells(table: pd.DataFrame) -> list[list[str]]:
    cells = [
        table["claim"] + " (" + table["place"] + ")",
        table["theory"] + " (" + table["statements"] + ")",
        table["shown"],
        "**" + table["verdict"] + "**",
        "**" + table["registered_verdict"] + "** " + table["registered"],
    ]
    texts = pd.concat(cells, axis=1)
    return [[text.strip().replace("|", "\\|") for text in row] for row in texts.to_numpy()]


def _remarks(table: pd.DataFrame) -> list[str]:
    return [REMARK] + [
        f"{run} is excluded, because mask_theory shows that it was not trained as it says: "
        f"{'; '.join(failed)}."
        for run, failed in table.attrs.get("excluded", {}).items()
    ]
