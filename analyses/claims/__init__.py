"""The paper's claims: what theory says of each, and what these runs show.

    python -m analyses.claims --run RUN [--run RUN2 ...]

For each claim of the DropLoRA paper a verdict that never says more than the runs show, by the
thresholds in `analyses.claims.verdicts`:

    supported           what was measured is what the claim says
    supported in part   some of it, or some of the runs
    contradicted        what was measured is not what the claim says
    undecided           measured, but it could be either
    not tested          these runs cannot decide; it says which could

The more kinds of run, the more is tested: step masks and token masks, with and without rescale,
AdamW and SGD, and LoRA beside them, several seeds each. Differences between methods are paired by
seed and tested at 5 % for all comparisons of a claim together (sign flips, Holm). No method is
called better on the strength of one learning rate: that takes runs of both at several rates, of
which validation examples choose each method's own, and scores on test examples. Runs that fail a
prediction of `analyses.mask_theory` about their masks or their training were not trained as they
say: they give no verdict, and are listed with the predictions that they fail.

Beside each verdict of these runs stands what the registered experiments found
(docs/why-rank-dropout.md), which no run of yours changes: effects with intervals and sample sizes,
and a verdict by a rule of their own. Writes claims.md and claims.html (without a page around
it), too.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from analyses import kit, mask_theory
from analyses.claims.evidence import Evidence
from analyses.claims.paper import CLAIMS
from analyses.claims.registered import found_of, verdict_of
from analyses.claims.texts import to_html, to_markdown, to_text
from analyses.mask_theory.figure import compared
from subspace_lab.errors import UserError
from subspace_lab.runs.run import Run

COLUMNS = ["name", "claim", "place", "theory", "statements", "shown", "verdict", "registered"]
COLUMNS += ["registered_verdict"]


def compute(runs: Sequence[Run]) -> pd.DataFrame:
    """Decide on all claims; a row is a claim.

    Returns:
        Columns name, claim (in our words), place (in the paper), theory, statements (numbers of the
        theorems), shown (measured numbers with their sample sizes, or what a test needs), verdict,
        registered (what the registered experiments found) and registered_verdict. The attribute
        `excluded` lists the failed predictions of each run that gives no verdict.

    Raises:
        UserError: if the runs recorded nothing that a claim is about.
    """
    table = mask_theory.join(mask_theory.compute(run, others=runs) for run in runs)
    if table.empty or (table := compared(table)).empty:
        raise UserError("these runs recorded nothing that a claim is about")
    evidence = Evidence(runs, table)
    claims = pd.DataFrame(
        [
            vars(claim)
            | vars(claim.finding(evidence))
            | {"registered": found_of(claim.name), "registered_verdict": verdict_of(claim.name)}
            for claim in CLAIMS
        ],
        columns=COLUMNS,
    )
    claims.attrs["excluded"] = evidence.excluded
    return claims


def summarize(table: pd.DataFrame) -> kit.Summary:
    """Give the verdicts, and the predictions that excluded runs failed."""
    excluded = table.attrs.get("excluded", {})
    failed = {f"excluded: {run}": "; ".join(reasons) for run, reasons in excluded.items()}
    return dict(zip(table["name"], table["verdict"], strict=True)) | failed


ANALYSIS = kit.Analysis(
    name="claims",
    description=__doc__,
    question="do theory and these runs support the paper's claims?",
    needs=kit.Needs.FACTORS,
    compute=compute,
    summarize=summarize,
    texts={"md": to_markdown, "html": to_html},
    on_screen=to_text,
    reading="What theory says of each claim, what these few runs show, and what the registered "
    "experiments found with ten seeds or five of a small model. A verdict never says more than "
    "its runs do.",
    compares=True,
    selects=False,
    position=95,
)
