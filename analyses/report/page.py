"""The report as a page of HTML: the overview of the runs, and a section for each analysis."""

from __future__ import annotations

import html
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from analyses.kit import open_named_runs
from analyses.registry import all_analyses
from analyses.report.sections import section

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 52rem; margin: 2rem auto; padding: 0 1rem;
       color: #222; background: #fff }
table { border-collapse: collapse; font-size: .85rem; margin: 1rem 0; display: block;
        overflow-x: auto }
th, td { border-bottom: 1px solid #ccc; padding: .25rem .6rem; text-align: left;
         vertical-align: top }
figure { margin: 1rem 0 } img { width: 26rem; max-width: 100% }
code { background: #f2f2f2; padding: 0 .2rem } .remark { color: #555; font-size: .9rem }
"""
HEAD = f"""<!doctype html><html lang='en'><head><meta charset='utf-8'>\
<meta name='viewport' content='width=device-width, initial-scale=1'>\
<title>subspace_lab report</title><style>{STYLE}</style></head><body>"""
INTRODUCTION = """<h1>What happened in these runs</h1>\
<p>Each run trains a low-rank update ΔW = (α/r)·B·A of a frozen model. DropLoRA switches \
rank directions (a column of B with its row of A) off at random during training, and uses \
all of them afterwards. The runs differ in what shares one mask (an optimizer step or a \
single token) and in whether kept directions are scaled up by 1/keep_prob.</p>"""
CAUTION = """<p class='remark'>One seed per run: differences between runs are within what another \
seed could change, unless an interval says otherwise.</p>"""
RESCALES = {
    "none": "not rescaled",
    "keep_prob": "× 1/keep_prob",
    "realized": "× 1/the share kept",
}
COLUMNS = (
    "run",
    "method",
    "mask",
    "steps",
    "loss when evaluated<br>(nats/token)",
    "exact match<br>(95&nbsp;%, Wilson)",
    "evaluated on",
    "step time<br>(median)",
    "size",
)


def render(table: pd.DataFrame) -> str:
    """Render the page, with every figure inside it.

    Args:
        table: the overview, from `report.compute`.
    """
    runs = open_named_runs([table["path"].tolist()])
    comparisons = Path(table.attrs["comparisons"])
    analyses = [analysis for analysis in all_analyses().values() if analysis.reading]
    sections = [section(analysis, runs, comparisons) for analysis in analyses]
    return "\n".join([HEAD + overview(table), *sections]) + "</body></html>\n"


def overview(table: pd.DataFrame) -> str:
    """Render the table of the runs, with what is special about their base models."""
    heads = "".join(f"<th>{name}</th>" for name in COLUMNS)
    lines = []
    for row in table.itertuples():
        cells = "".join(f"<td>{html.escape(text)}</td>" for text in _texts(row))
        lines.append(f"<tr>{cells}</tr>")
    remarks = sorted(filter(None, set(table["base_remark"])))
    of_bases = (f"<p class='remark'>Base model {html.escape(remark)}.</p>" for remark in remarks)
    body = f"<table><tr>{heads}</tr>{''.join(lines)}</table>{''.join(of_bases)}"
    return INTRODUCTION + body + CAUTION


def _texts(row: Any) -> Iterator[str]:
    """Yield the cells of a run; empty where it has no such number."""
    mask, loss, match, evaluated = "none", "", "", "nothing"
    if pd.notna(row.granularity):
        kind = "" if row.sampling == "bernoulli" else f"{row.sampling}, "
        share = f"keep_prob {row.keep_prob:g}, " if row.keep_prob > 0 else ""
        mask = f"{kind}per {row.granularity}, {share}{RESCALES[row.rescale]}"
    if row.examples > 0:
        loss = f"{row.first_loss:.2f} → {row.last_loss:.2f}"
        interval = f"[{row.exact_match_low:.2f}, {row.exact_match_high:.2f}]"
        match = f"{row.first_exact_match:.2f} → {row.last_exact_match:.2f} {interval}"
        evaluated = f"{row.examples:g} {row.split} examples"
    yield from (row.run, row.method, mask, str(row.steps), loss, match, evaluated)
    yield f"{row.step_seconds:.2f} s" if row.step_seconds > 0 else ""
    yield f"{row.bytes / 2**20:.0f} MiB"
