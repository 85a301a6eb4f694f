"""The table of claims as text: for a terminal, in Markdown and in HTML."""

from __future__ import annotations

import html
import textwrap
from collections.abc import Callable

import pandas as pd

from analyses.kit import markdown_table
from analyses.kit.verdicts import verdict_html

HEADS = {
    "claim": "the paper says",
    "theory": "theory says",
    "shown": "these runs show",
    "verdict": "verdict of these runs",
    "registered": "the registered experiments found",
}
REMARK = (
    "The registered experiments (docs/why-rank-dropout.md): a small model in regimes A (label "
    "noise), B (few examples) and C (one pass); differences paired by seed, each method at its own "
    "learning rate where nothing else is said; 95 % intervals, p-values corrected by Holm."
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
    cells = _cells(table, lambda text: text.replace("|", "\\|"), lambda verdict: f"**{verdict}**")
    lines = markdown_table([list(HEADS.values()), *cells])
    return "\n".join([lines, "", *_remarks(table)]).rstrip() + "\n"


def to_html(table: pd.DataFrame) -> str:
    """Render the claims as an HTML table."""
    head = "".join(f"<th>{name}</th>" for name in HEADS.values())
    body = "".join(
        f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>\n"
        for cells in _cells(table, html.escape, verdict_html)
    )
    remarks = "".join(f"<p class='remark'>{html.escape(text)}</p>\n" for text in _remarks(table))
    return f"<div class='scroll'><table><tr>{head}</tr>\n{body}</table></div>\n{remarks}"


def _cells(
    table: pd.DataFrame, escape: Callable[[str], str], verdict: Callable[[str], str]
) -> list[list[str]]:
    return [
        [
            escape(f"{row.claim} ({row.place})"),
            escape(f"{row.theory} ({row.statements})"),
            escape(str(row.shown)),
            verdict(str(row.verdict)),
            f"{verdict(str(row.registered_verdict))} {escape(str(row.registered))}",
        ]
        for row in table.itertuples()
    ]


def _remarks(table: pd.DataFrame) -> list[str]:
    return [REMARK] + [
        f"{run} is excluded, because mask_theory shows that it was not trained as it says: "
        f"{'; '.join(failed)}."
        for run, failed in table.attrs.get("excluded", {}).items()
    ]
