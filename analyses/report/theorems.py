"""The theorems in plain words, links to them, and how many tested predictions agree."""

from __future__ import annotations

import html
import re

import pandas as pd

from analyses.kit.verdicts import verdict_html
from analyses.mask_theory.figure import THEOREMS as ABOUT
from analyses.mask_theory.figure import disagreements
from analyses.report.tables import table_html

THEOREMS = {
    "T1": "How many rank directions two successive masks share, how often a direction is kept, "
    "and how long it takes until each was kept once: coin flips decide, not training.",
    "T2": "The angles between the subspaces of two masks follow from the rows of A alone. Rows "
    "that both masks keep give an angle of zero.",
    "T3": "The same angles if the rows of A pointed at random: what to compare measured ones with.",
    "T4": "All angles between masks of one A can be read off one small triangular matrix.",
    "T5": "How large the masked update is on average, and how much it varies from mask to mask.",
    "T6": "How many directions a masked update has, and the bounds on its singular values.",
    "T7": "Training a linear layer under masks is training it without them, plus a penalty on "
    "directions that are large in both B and A. The penalty does not depend on whether steps, "
    "samples or tokens share a mask.",
    "T8": "That penalty takes the same amount off every singular value of the solution, and "
    "removes those that are smaller: of what the update does to its inputs, under a squared loss.",
    "T9": "By how much the trained update should be multiplied at inference to undo what masks "
    "shrank: of a linear layer under a squared loss, and not of a language model.",
    "T10": "How noisy masks make the gradient. A mask per step is noise that a larger batch does "
    "not reduce; a mask per token averages out.",
    "T11": "In a deep network, the cost of random gates starts with the curvature of the loss in "
    "each gate: a penalty like T7's, plus higher orders.",
    "T12": "The full model as an ensemble of its masked parts: exactly their geometric mean where "
    "the adapter makes the logits; and what single masks lose on average.",
    "T13": "How a step changes the balance between the lengths of a direction in B and in A, and "
    "that masks make directions more alike under a squared loss.",
    "T14": "How the penalty shapes the course of training of a deep linear network under a squared "
    "loss, by plain gradient descent in small steps.",
    "T15": "What one masked step can change: the rank of the step, and in which subspaces it lies.",
    "T16": "What AdamW makes of masks: the mean step is shorter by the square root of keep_prob, "
    "the random part of the way is not, and a direction that is switched off still moves, by its "
    "momentum.",
    "T17": "Two masks at once are one mask with the product of their keep probabilities.",
    "T18": "Which singular values of a random matrix stand out after an update of rank one.",
}
"""What the theorems of docs/theory.md say, by number."""

_NUMBER = re.compile(r"(<a .*?</a>|<code>.*?</code>|<[^>]*>)|\b(T\d{1,2})\b", re.DOTALL)


def linked(page: str) -> str:
    """Link the numbers of theorems in a page's text to the list of them."""

    def link(found: re.Match[str]) -> str:
        number = found[2]
        return f"<a href='#{number}'>{number}</a>" if number in THEOREMS else found[0]

    return _NUMBER.sub(link, page)


def listed() -> str:
    """List the theorems in plain words, the targets of the links."""
    lines = (
        f"<dt id='{number}'>{number}</dt><dd>{words}</dd>" for number, words in THEOREMS.items()
    )
    return f"<dl>{''.join(lines)}</dl>"


def counted(table: pd.DataFrame) -> pd.DataFrame:
    """Keep the comparisons with a verdict, what several runs share once."""
    return table[table["agrees"].notna() & ~table["repeats"].astype(bool)]


def theorems_table(table: pd.DataFrame) -> str:
    """Render how many comparisons of each theorem agree, and what disagrees in words."""
    tested = counted(table).assign(statement=lambda rows: rows["statement"].astype(str))
    lines = []
    for theorem, rows in tested.groupby("statement", sort=False):
        agree, all_ = int(rows["agrees"].sum()), len(rows)
        verdict = "agree" if agree == all_ else "disagree"
        about = html.escape(ABOUT.get(str(theorem), ""))
        lines.append([str(theorem), about, f"{agree} of {all_}", verdict_html(verdict)])
    failed = "".join(f"<li>{html.escape(line)}</li>" for line in disagreements(table))
    heads = ["theorem", "about", "comparisons that agree", "verdict"]
    return table_html(heads, lines) + (f"<ul>{failed}</ul>" if failed else "")
