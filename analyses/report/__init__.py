"""One self-contained page from the analyses of several runs, in plain words.

    python -m analyses.report --run runs/demo/lora --run runs/demo/step --out runs/demo/report.html

Reads the tables that the analyses wrote into each run's `analyses/` folder, draws them for the runs
together, and says what each figure shows. Tables of several runs, such as those of mask_theory,
claims and paired_differences, are read from the folders --comparisons. Runs that learned different
things (another base, other data, another length of training) have figures and tables of their own.
Computes none of them: an analysis that was not run is listed with the command that runs it.

The headline says in three to six sentences what differs from LoRA beyond its interval and what does
not, what masks cost in time, and which predictions failed. Its differences are those of the loss at
the validated temperature, where that was measured, else of the loss, else of the accuracy. Its own
table is the overview of the runs.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from analyses import kit
from analyses.report.page import render
from analyses.report.parts import parts_of
from subspace_lab.errors import UserError
from subspace_lab.runs.run import Run
from subspace_lab.stats.intervals import accuracy_interval


def compute(runs: Sequence[Run], *, comparisons: Sequence[Path] | None = None) -> pd.DataFrame:
    """Make the overview of the runs, a row each.

    The table's attribute `comparisons` lists the folders of the analyses of several runs together,
    which are by default where those of all runs are written.

    Returns:
        Columns problem (what was learned, in words), configuration (a number that repetitions under
        other seeds share), run, path, method, learning_rate, granularity, keep_prob, rescale,
        sampling (of its mask), steps, first_loss, last_loss (of evaluations, nats per token),
        first_exact_match, last_exact_match with its interval exact_match_low, exact_match_high
        (95 %, Wilson), examples and split (of the last evaluation), step_seconds (median), bytes,
        base_remark.

    Raises:
        UserError: if a folder of `comparisons` does not exist.
    """
    for folder in comparisons or ():
        if not folder.is_dir():
            raise UserError(f"there is no folder {folder}: run analyses.mask_theory first")
    rows = [
        {"problem": part.name, "configuration": place, **_overview(run)}
        for part in parts_of(runs)
        for place, repetitions in enumerate(part.repetitions)
        for run in repetitions
    ]
    table = pd.DataFrame(rows)
    table.attrs["comparisons"] = [str(one) for one in comparisons or [kit.default_folder(runs)]]
    return table


def _overview(run: Run) -> dict[str, Any]:
    metrics, law, provenance = run.metrics, run.mask_law, run.description.get("provenance", {})
    seconds = metrics["seconds"].dropna().tolist() if "seconds" in metrics else []
    remark = provenance.get("base_remark")
    return {
        "run": run.name,
        "path": str(run.path),
        "method": str(run.config.get("method", "?")),
        "learning_rate": float(run.config.get("learning_rate", math.nan)),
        "granularity": law and law.granularity,
        "keep_prob": law.keep_prob if law and law.uses_keep_prob else math.nan,
        "rescale": law and law.rescale,
        "sampling": law and law.sampling,
        "steps": int(metrics["step"].max()),
        **_evaluated(run),
        "step_seconds": statistics.median(seconds) if seconds else math.nan,
        "bytes": sum(path.stat().st_size for path in run.path.rglob("*") if path.is_file()),
        "base_remark": f"{provenance['base']}: {remark}" if remark else "",
    }


def _evaluated(run: Run) -> dict[str, Any]:
    """Give what was measured before and after training; missing where nothing was evaluated."""
    names = {"loss": "response_loss", "exact_match": "exact_match", "examples": "examples"}
    columns = [f"eval_{name}" for name in names.values()]
    table = run.evaluations.reindex(columns=columns).set_axis(list(names), axis=1)
    ends = {
        f"{place}_{name}": float(table[name].iloc[row]) if len(table) else math.nan
        for name in ("loss", "exact_match")
        for place, row in (("first", 0), ("last", -1))
    }
    if table["examples"].isna().all():
        missing = dict.fromkeys(("exact_match_low", "exact_match_high", "examples"), math.nan)
        return ends | missing | {"split": None}
    examples = int(table["examples"].iloc[-1])
    interval = accuracy_interval(round(ends["last_exact_match"] * examples), examples)
    return ends | {
        "exact_match_low": interval.low,
        "exact_match_high": interval.high,
        "examples": examples,
        "split": run.evaluated_split,
    }


def summarize(table: pd.DataFrame) -> kit.Summary:
    """Give the loss and the exact match after training, of the runs that were evaluated."""
    return {
        row["run"]: {"loss": row["last_loss"], "exact match": row["last_exact_match"]}
        for row in table[table["examples"].notna()].to_dict(orient="records")
    }


ANALYSIS = kit.Analysis(
    name="report",
    description=__doc__,
    question="all of it on one page",
    needs=kit.Needs.METRICS,
    compute=compute,
    summarize=summarize,
    texts={"html": render},
    options={
        "comparisons": {
            "type": Path,
            "nargs": "+",
            "metavar": "FOLDER",
            "help": "analyses of several runs together, such as mask_theory and "
            "paired_differences (default: comparisons/NAMES)",
        }
    },
    compares=True,
    selects=False,
    position=130,
)
