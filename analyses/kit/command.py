"""The command line of every analysis: `python -m analyses.NAME --run RUN`.

if __name__ == "__main__":
    run_analysis(ANALYSIS)
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from analyses.kit.analysis import Analysis
from analyses.kit.needs import Needs, check_needs
from analyses.kit.selection import open_named_runs, select_modules, select_steps
from analyses.kit.writing import default_folder, write_results
from subspace_lab.errors import UserError, exit_code_2_on_user_error
from subspace_lab.runs.run import Run
from subspace_lab.stats.seeds import label_configurations

FORMATS = ("png", "pdf", "svg", "none")


@exit_code_2_on_user_error
def run_analysis(analysis: Analysis, arguments: Sequence[str] | None = None) -> None:
    """Run an analysis from the command line: open runs, compute, draw, write, and say where.

    Args:
        analysis: the analysis.
        arguments: of the command line; None: those of the process.

    Raises:
        UserError: if a run, step or module is not available, or a run lacks what is needed.
    """
    chosen = parser_of(analysis).parse_args(arguments)
    runs = open_named_runs(chosen.run or [])
    for run in runs:
        check_needs(run, analysis.needs)
    table = table_of(
        analysis,
        runs,
        steps=chosen.steps if analysis.selects else None,
        modules=chosen.modules if analysis.selects else None,
        options={name: getattr(chosen, name) for name in analysis.options},
    )
    out = chosen.out or default_folder(runs)
    is_file = out.suffix[1:] in analysis.texts
    write_results(
        analysis,
        runs,
        table,
        folder=out.parent if is_file else out,
        name=out.stem if is_file else None,
        forms=(chosen.format if analysis.plot else None) or ["png", "pdf"],
        csv=chosen.csv,
        arguments=vars(chosen),
    )


def parser_of(analysis: Analysis) -> argparse.ArgumentParser:
    """Make an analysis's parser; its help is the module's docstring."""
    parser = argparse.ArgumentParser(
        prog=f"python -m analyses.{analysis.name}",
        description=analysis.description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--run",
        "--runs",
        action="append",
        nargs="+",
        required=not analysis.without_runs,
        metavar="RUN",
        help="a run directory, a PEFT adapter folder, a Trainer output folder with checkpoints, "
        "a hub id, or a quoted glob of run directories; may be given several times",
    )
    default = "RUN/analyses; for several runs comparisons/NAMES"
    ends = " or ".join(f"FILE.{extension}" for extension in analysis.texts)
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FOLDER",
        help=f"where to write{', or ' * bool(ends)}{ends} (default: {default})",
    )
    parser.add_argument(
        "--csv",
        action=argparse.BooleanOptionalAction,
        default=analysis.csv,
        help="write the tables as CSV, too",
    )
    if analysis.plot is not None:
        parser.add_argument(
            "--format",
            action="append",
            choices=FORMATS,
            help="of figures; may be given several times; none: no figure (default: png and pdf)",
        )
    if analysis.selects:
        parser.add_argument(
            "--steps",
            metavar="STEPS",
            help="which recorded steps: a list such as 0,10,100, every:K, log:K (K per decade), "
            "or last (default: all)",
        )
        parser.add_argument(
            "--modules",
            nargs="+",
            metavar="PATTERN",
            help="which modules: projections such as q_proj, full paths, or quoted globs such as "
            "'*.layers.0.*' (default: all)",
        )
    for name, settings in analysis.options.items():
        spellings = dict.fromkeys((f"--{name}", f"--{name.replace('_', '-')}"))
        parser.add_argument(*spellings, dest=name, **settings)
    return parser


def table_of(
    analysis: Analysis,
    runs: Sequence[Run],
    *,
    steps: str | None = None,
    modules: Sequence[str] | None = None,
    options: dict[str, Any] | None = None,
) -> pd.DataFrame:
    """Make one table of several runs, with a column `configuration` where some share theirs.

    Args:
        analysis: the analysis.
        runs: the runs.
        steps: which of each run's steps, as --steps; None: all.
        modules: which modules, as --modules; None: all.
        options: the analysis's own options.

    Raises:
        UserError: if a step or module is not available, or nothing is left.
    """
    options = options or {}
    if analysis.compares:
        selection = {"steps": steps, "modules": modules} if analysis.selects else {}
        return analysis.compute(runs, **selection, **options)
    of_factors = Needs.FACTORS in analysis.needs
    table = analysis.join(
        analysis.compute(
            run,
            steps=select_steps(run, steps_of(analysis, run), steps),
            modules=select_modules(run, modules) if of_factors else modules,
            **options,
        )
        for run in runs
    )
    if table.empty:
        raise UserError("no data for this analysis at the selected steps: omit --steps")
    return label(table, runs)


def steps_of(analysis: Analysis, run: Run) -> Sequence[int]:
    """List the steps among which --steps chooses: those of what the analysis reads."""
    if Needs.CORES in analysis.needs:
        return run.steps
    if Needs.SNAPSHOTS in analysis.needs:
        return sorted(run.snapshots)
    if Needs.MODEL in analysis.needs:
        return sorted(run.adapter_folders)
    return [int(step) for step in run.metrics["step"]]


def label(table: pd.DataFrame, runs: Sequence[Run]) -> pd.DataFrame:
    """Add a column `configuration` where some runs differ in their seed only, and so share it."""
    labels = label_configurations({run.name: run.config for run in runs})
    if len(set(labels.values())) < len(runs):
        table["configuration"] = table["run"].astype(str).map(labels).astype("category")
    return table
