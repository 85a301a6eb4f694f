"""The paper's claims: what theory says of each, and what these runs show.

    python -m analyses.claims --run RUN [--run RUN2 ...] [--out FOLDER]

For each claim of the DropLoRA paper a verdict that never says more than the runs show, by the
thresholds in `analyses.predictions.judges`:

    supported           what was measured is what the claim says
    supported in part   some of it, or some of the runs
    contradicted        what was measured is not what the claim says
    undecided           measured, but it could be either
    not tested          these runs cannot tell; it says what could

The more kinds of run, the more is tested: step masks and token masks, with and without rescale,
AdamW and SGD, and LoRA beside them, several seeds each. Differences between methods are paired by
seed and tested at 5 % for all comparisons of a claim together (sign flips, Holm). Runs that fail a
prediction of `analyses.mask_theory` about their masks or their training were not trained as they
say: they give no verdict, and are listed with the predictions that they fail. Writes
claims.parquet, claims.json, claims.md and claims.html (a table without a page around it).
"""

from __future__ import annotations

import argparse
import html
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from analyses.kit.notes import notes, print_notes
from analyses.kit.selection import open_named_runs
from analyses.kit.writing import default_folder
from subspace_lab.errors import UserError, exit_code_2_on_user_error

if TYPE_CHECKING:
    import pandas as pd

    from subspace_lab.runs.run import Run

HEADS = {
    "claim": "the paper says",
    "theory": "theory says",
    "shown": "these runs show",
    "verdict": "verdict of these runs",
}


def compute(runs: Sequence[Run]) -> pd.DataFrame:
    """Hold the runs against all claims; a row is a claim.

    Args:
        runs: the runs.

    Returns:
        Columns name, claim (in our words), theory, statements (numbers of the theorems), shown
        (measured numbers with their sample sizes, or what a test needs), verdict. The attribute
        `excluded` lists the failed predictions of each run that gives no verdict.
    """
    import pandas as pd

    from analyses import mask_theory
    from analyses.predictions.evidence import Evidence
    from analyses.predictions.paper import CLAIMS

    table = mask_theory.join(mask_theory.compute(run, others=runs) for run in runs)
    if table.empty:
        raise UserError("these runs recorded nothing that a claim is about")
    evidence = Evidence(runs, table)
    rows = []
    for claim in CLAIMS:
        finding = claim.judge(evidence)
        rows.append(
            {
                "name": claim.name,
                "claim": claim.claim,
                "theory": claim.theory,
                "statements": claim.statements,
                "shown": finding.shown,
                "verdict": finding.verdict,
            }
        )
    claims = pd.DataFrame(rows)
    claims.attrs["excluded"] = evidence.excluded
    return claims


def to_text(table: pd.DataFrame) -> str:
    """Render the claims for a terminal."""
    blocks = []
    for row in table.itertuples():
        lines = [f"{row.name}: {row.verdict}"]
        for head, text in (
            ("claim", row.claim),
            ("theory", f"{row.theory} ({row.statements})"),
            ("runs", row.shown),
        ):
            lines += textwrap.wrap(
                f"{head:<7} {text}", 96, initial_indent="  ", subsequent_indent=" " * 10
            )
        blocks.append("\n".join(lines))
    return "\n".join(blocks + _remarks(table))


def to_markdown(table: pd.DataFrame) -> str:
    """Render the claims as a Markdown table."""
    rows = [list(HEADS.values()), ["---"] * len(HEADS), *_cells(table, lambda text: text)]
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join([*lines, "", *_remarks(table)]).rstrip() + "\n"


def to_html(table: pd.DataFrame) -> str:
    """Render the claims as an HTML table."""
    head = "".join(f"<th>{name}</th>" for name in HEADS.values())
    body = "".join(
        f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>\n"
        for row in _cells(table, html.escape)
    )
    remarks = "".join(f"<p class='remark'>{html.escape(text)}</p>\n" for text in _remarks(table))
    return f"<table><tr>{head}</tr>\n{body}</table>\n{remarks}"


def _cells(table: pd.DataFrame, escape: Callable[[str], str]) -> list[list[str]]:
    return [
        [
            escape(str(row.claim)),
            escape(f"{row.theory} ({row.statements})"),
            escape(str(row.shown)),
            escape(str(row.verdict)),
        ]
        for row in table.itertuples()
    ]


def _remarks(table: pd.DataFrame) -> list[str]:
    return [
        f"{run} is excluded, because mask_theory shows that it was not trained as it says: "
        f"{'; '.join(failed)}."
        for run, failed in table.attrs.get("excluded", {}).items()
    ]


def write(table: pd.DataFrame, folder: Path, runs: Sequence[Run]) -> list[Path]:
    """Write the table in its four forms, and give the paths."""
    from subspace_lab import files
    from subspace_lab.provenance import provenance

    paths = [folder / f"claims.{form}" for form in ("parquet", "json", "md", "html")]
    content = {
        "analysis": "claims",
        "claims": table.to_dict(orient="records"),
        "excluded": table.attrs.get("excluded", {}),
        "runs": [{"name": run.name, "path": str(run.path)} for run in runs],
        "provenance": provenance(),
    }
    files.write_table(paths[0], table)
    files.write_json(paths[1], content)
    for path, text in zip(paths[2:], (to_markdown(table), to_html(table)), strict=True):
        with files.replacing(path) as unfinished:
            unfinished.write_text(text, encoding="utf-8")
    return paths


@exit_code_2_on_user_error
def main() -> None:
    """Hold runs against the claims from the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m analyses.claims",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--run", action="append", nargs="+", required=True, metavar="RUN")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="default: as for analyses")
    arguments = parser.parse_args()
    runs = open_named_runs(arguments.run)
    table = compute(runs)
    print(to_text(table))
    print_notes({run.name: notes(run) for run in runs})
    for path in write(table, arguments.out or default_folder(runs), runs):
        print(f"wrote {path}")


if __name__ == "__main__":
    main()
