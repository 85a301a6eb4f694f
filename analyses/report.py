"""One self-contained page from the analyses of several runs, in plain words.

    python -m analyses.report --run runs/demo/lora --run runs/demo/step --out runs/demo/report.html

Reads the tables that the analyses wrote into each run's `analyses/` folder, draws them for all runs
together, and says what each figure shows. What an analysis found by comparing the runs is read from
--comparisons. Computes nothing: an analysis that was not run is named with the command that makes
it.
"""

from __future__ import annotations

import argparse
import base64
import html
import io
import statistics
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from analyses import kit
from analyses.registry import all_analyses
from subspace_lab import files
from subspace_lab.errors import UserError, exit_code_2_on_user_error
from subspace_lab.figures.style import DOTS_PER_INCH
from subspace_lab.runs.run import Run
from subspace_lab.stats.intervals import accuracy_interval

CLAIMS_READING = (
    "What theory says of each claim, and what these few runs show. A verdict never says more than "
    "the runs do: one seed each, a small model and a small task."
)
RESCALES = {
    "none": "not rescaled",
    "keep_prob": "× 1/keep_prob",
    "realized": "× 1/the share kept",
}
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


def render(runs: Sequence[Run], *, comparisons: Path | None = None, claims: str = "") -> str:
    """Render the page.

    Args:
        runs: the runs, with their analyses in `RUN/analyses/`.
        comparisons: folder of the analyses of all runs together; None: where they are written by
            default.
        claims: HTML table of the paper's claims, from `analyses.claims`.

    Returns:
        HTML with every figure inside it.
    """
    sections = [_overview(runs)]
    folder = kit.default_folder(runs) if comparisons is None else comparisons
    sections += [_section(a, runs, folder) for a in all_analyses().values() if a.reading]
    if claims:
        sections.append(f"<h2>The paper's claims</h2><p>{CLAIMS_READING}</p>{claims}")
    return (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>subspace_lab report</title><style>{STYLE}</style></head><body>"
        + "\n".join(sections)
        + "</body></html>\n"
    )


def _overview(runs: Sequence[Run]) -> str:
    rows = "".join(
        f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in _facts(run))}</tr>"
        for run in runs
    )
    heads = (
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
    remarks = sorted(
        {
            f"{run.description['provenance']['base']}: {remark}"
            for run in runs
            if (remark := run.description.get("provenance", {}).get("base_remark"))
        }
    )
    return (
        "<h1>What happened in these runs</h1>"
        "<p>Each run trains a low-rank update ΔW = (α/r)·B·A of a frozen model. DropLoRA switches "
        "rank directions (a column of B with its row of A) off at random while it trains, and uses "
        "all of them afterwards. The runs differ in what shares one mask (an optimizer step or a "
        "single token) and in whether what is kept is scaled up by 1/keep_prob.</p>"
        f"<table><tr>{''.join(f'<th>{head}</th>' for head in heads)}</tr>{rows}</table>"
        + "".join(f"<p class='remark'>Base model {html.escape(remark)}.</p>" for remark in remarks)
        + "<p class='remark'>One seed per run: differences between runs are within what another "
        "seed could change, unless an interval says otherwise.</p>"
    )


def _facts(run: Run) -> list[str]:
    """Give the cells of a run's row in the overview; empty where it has no such number."""
    metrics, law = run.metrics, run.mask_law
    evaluations = run.evaluations.to_dict(orient="list")
    losses, matches, sizes = (
        evaluations.get(f"eval_{name}", []) for name in ("response_loss", "exact_match", "examples")
    )
    seconds = metrics["seconds"].dropna().tolist() if "seconds" in metrics else []
    exact_match, evaluated = "", "nothing"
    if sizes:
        examples = int(sizes[-1])
        interval = accuracy_interval(round(matches[-1] * examples), examples)
        exact_match = f"{_change(matches)} [{interval.low:.2f}, {interval.high:.2f}]"
        evaluated = f"{examples} {run.evaluated_split} rows"
    mask = "none"
    if law is not None:
        kind = "" if law.sampling == "bernoulli" else f"{law.sampling}, "
        share = f"keep_prob {law.keep_prob:g}, " if law.uses_keep_prob else ""
        mask = f"{kind}per {law.granularity}, {share}{RESCALES[str(law.rescale)]}"
    size = sum(path.stat().st_size for path in run.path.rglob("*") if path.is_file())
    return [
        run.name,
        str(run.config.get("method", "?")),
        mask,
        str(int(metrics["step"].max())),
        _change(losses),
        exact_match,
        evaluated,
        f"{statistics.median(seconds):.2f} s" if seconds else "",
        f"{size / 2**20:.0f} MiB",
    ]


def _change(values: Sequence[float]) -> str:
    return f"{values[0]:.2f} → {values[-1]:.2f}" if values else ""


def _section(analysis: kit.Analysis, runs: Sequence[Run], comparisons: Path) -> str:
    """Render one analysis: what it asks, the figure for all runs that have it, how to read it."""
    tables = _tables(analysis, runs, comparisons)
    question = html.escape(analysis.question[:1].upper() + analysis.question[1:])
    head = f"<h2>{question}</h2>"
    if not tables:
        named = " ".join(f"--run {run.path}" for run in (runs if analysis.compares else runs[:1]))
        command = html.escape(f"python -m analyses.{analysis.name} {named}")
        return head + f"<p>Not computed: run <code>{command}</code>.</p>"
    # What several runs share, such as the masks of one seed, counts once in mask_theory.
    image = _image(analysis, kit.label(analysis.join(tables.values()), list(tables)))
    together = analysis.compares and (comparisons / f"{analysis.name}.parquet").is_file()
    place = str(comparisons) if together else "RUN/analyses"
    missing = ", ".join(run.name for run in runs if run not in tables)
    remarks = [f"Without {missing}: {analysis.why_missing}."] if missing else []
    for run, table in tables.items():
        for lines in table.attrs.get("notes", {}).values():
            remarks += [f"{run.name}: {line}." for line in lines]
    return (
        head
        + f"<p>{analysis.reading}</p><figure><img alt='{question}' "
        + f"src='data:image/png;base64,{image}'></figure>"
        + "".join(f"<p class='remark'>{html.escape(remark)}</p>" for remark in remarks)
        + f"<p class='remark'>Tables: <code>{html.escape(place)}/{analysis.name}.parquet</code></p>"
    )


def _tables(
    analysis: kit.Analysis, runs: Sequence[Run], comparisons: Path
) -> dict[Run, pd.DataFrame]:
    """Read the tables of the runs that have one, if possible from their comparison."""
    together = comparisons / f"{analysis.name}.parquet"
    if analysis.compares and together.is_file():
        return _split(files.read_table(together), runs)
    tables = {}
    for run in runs:
        path = run.output_folder / f"{analysis.name}.parquet"
        if path.is_file():
            table = files.read_table(path)
            table["run"] = run.name
            tables[run] = table.drop(columns="configuration", errors="ignore")
    return tables


def _split(table: pd.DataFrame, runs: Sequence[Run]) -> dict[Run, pd.DataFrame]:
    """Split a table of several runs into those of the given runs, each with its own notes."""
    notes = table.attrs.get("notes", {})
    table = table.drop(columns="configuration", errors="ignore")
    tables = {}
    for run in runs:
        rows = table[table["run"] == run.name].astype({"run": str}).reset_index(drop=True)
        if len(rows):
            rows.attrs = {"notes": {run.name: notes.get(run.name, [])}}
            tables[run] = rows
    return tables


def _image(analysis: kit.Analysis, table: pd.DataFrame) -> str:
    figure = analysis.plot(table)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=DOTS_PER_INCH)
    return base64.b64encode(stream.getvalue()).decode()


@exit_code_2_on_user_error
def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(
        prog="python -m analyses.report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--run", action="append", nargs="+", required=True, metavar="RUN")
    parser.add_argument("--out", type=Path, default=Path("report.html"), metavar="FILE")
    parser.add_argument(
        "--claims", type=Path, metavar="FILE", help="claims.html, which analyses.claims wrote"
    )
    parser.add_argument(
        "--comparisons",
        type=Path,
        metavar="FOLDER",
        help="analyses of all runs together, such as mask_theory (default: comparisons/NAMES)",
    )
    arguments = parser.parse_args()
    runs = kit.open_named_runs(arguments.run)
    for run in runs:
        if not run.recorded:
            raise UserError(f"{run.path} is not a recorded run: a report needs its metrics")
    if arguments.comparisons is not None and not arguments.comparisons.is_dir():
        raise UserError(
            f"there is no folder {arguments.comparisons}: run analyses.mask_theory first"
        )
    if arguments.claims is not None and not arguments.claims.is_file():
        raise UserError(f"there is no file {arguments.claims}: run analyses.claims first")
    claims = arguments.claims.read_text(encoding="utf-8") if arguments.claims else ""
    page = render(runs, comparisons=arguments.comparisons, claims=claims)
    with files.replacing(arguments.out) as unfinished:
        unfinished.write_text(page, encoding="utf-8")
    print(f"wrote {arguments.out}")


if __name__ == "__main__":
    main()
