"""The columns of each table, as docs/run-directory.md lists them."""

from __future__ import annotations

import re
from pathlib import Path

DOCUMENT = Path(__file__).parents[2] / "docs" / "run-directory.md"
OF_MODULES = {"run", "step", "module", "layer", "projection"}


def documented(table: str) -> set[str]:
    """Read the columns of a table; its rows' own names are in the column `a row is`."""
    (line,) = re.findall(rf"^\| `{table}` \|(.*)\|$", DOCUMENT.read_text(), re.MULTILINE)
    rows, _, columns = line.partition("|")
    names = set(re.findall(r"\w+", rows)) & OF_MODULES
    if "module" in names:
        names |= OF_MODULES
    return names | set(re.findall("`([a-z0-9_]+)`", columns))
