"""Tables of the page, which scroll within themselves where a window is narrow."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence


def table_html(heads: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """Render a table of cells that are HTML already."""
    head = "".join(f"<th>{name}</th>" for name in heads)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in line)}</tr>\n" for line in lines)
    return f"<div class='scroll'><table><tr>{head}</tr>\n{body}</table></div>"


def several(names: Sequence[str]) -> str:
    """Name the repetitions of a configuration by the first, in HTML; all of them on pointing."""
    first = html.escape(names[0])
    if len(names) == 1:
        return first
    more = len(names) - 1
    every = html.escape(", ".join(names), quote=True)
    return f"<span title='{every}'>{first} and {more} other seed{'s' * (more > 1)}</span>"


def some(texts: Sequence[str], most: int, *, joined: str = ", ", others: str = " and") -> str:
    """List the first few, and count the others if there are several."""
    more = len(texts) - most
    if more <= 1:
        return joined.join(texts)
    return f"{joined.join(texts[:most])}{others} {more} others"
