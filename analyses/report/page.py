"""The report as a page of HTML: headline, contents, the runs, a section for each analysis."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from analyses.kit import open_named_runs
from analyses.registry import all_analyses
from analyses.report.evaluations import scores_table
from analyses.report.headline import headline
from analyses.report.overview import overview
from analyses.report.parts import parts_of
from analyses.report.sections import question_of, section
from analyses.report.theorems import linked, listed

STYLE = Path(__file__).with_name("style.css").read_text(encoding="utf-8")
HEAD = f"""<!doctype html><html lang='en'><head><meta charset='utf-8'>\
<meta name='viewport' content='width=device-width, initial-scale=1'>\
<title>subspace_lab report</title><style>{STYLE}</style></head><body><main>"""
INTRODUCTION = """<h1>What happened in these runs</h1>\
<p>Each run trains a low-rank update ΔW = (α/r)·B·A of a frozen model. DropLoRA switches \
rank directions (a column of B with its row of A) off at random during training, and uses \
all of them afterwards. The runs may differ in what shares one mask (an optimizer step or a \
single token), in whether kept directions are scaled up by 1/keep_prob, and in their learning \
rate.</p>"""
SCORES = "How did the runs score on test examples?"
PLAIN_WORDS = "The theorems in plain words"


def render(table: pd.DataFrame) -> str:
    """Render the page of `report.compute`'s table, with every figure inside it.

    Links are relative to the table's attribute `folder`.
    """
    parts = parts_of(open_named_runs([table["path"].tolist()]))
    comparisons = [Path(folder) for folder in table.attrs["comparisons"]]
    folder = Path(table.attrs.get("folder", "."))
    analyses = [analysis for analysis in all_analyses().values() if analysis.reading]
    scores = scores_table(parts)

    contents = {"runs": "The runs"} | ({"scores": SCORES} if scores else {})
    contents |= {analysis.name: question_of(analysis) for analysis in analyses}
    contents["theorems"] = PLAIN_WORDS
    found = "".join(f"<li>{line}</li>" for line in headline(table, parts, comparisons))
    entries = "".join(f"<li><a href='#{name}'>{title}</a></li>" for name, title in contents.items())
    body = [
        f"{INTRODUCTION}<ul class='headline'>{found}</ul>",
        f"<nav><h2>Contents</h2><ol>{entries}</ol></nav>",
        f"<h2 id='runs'>The runs</h2>{overview(table)}",
        f"<h2 id='scores'>{SCORES}</h2>{scores}" if scores else "",
        *(section(analysis, parts, comparisons, folder=folder) for analysis in analyses),
    ]
    end = f"<h2 id='theorems'>{PLAIN_WORDS}</h2>{listed()}</main></body></html>\n"
    return HEAD + linked("\n".join(body)) + end
