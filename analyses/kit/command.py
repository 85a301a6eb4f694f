"""The command line of every analysis: `python -m analyses.NAME --run RUN`.

if __name__ == "__main__":
    run_analysis(ANALYSIS)
"""

from __future__ import annotations

import argparse
import gc
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from analyses.kit.analysis import Analysis
from analyses.kit.needs import Needs, check_needs
from analyses.kit.selection import open_named_runs, select_modules, select_steps
from analyses.kit.writing import write_results
from subspace_lab.configurations import label_configurations
from subspace_lab.errors import UserError, exit_code_2_on_user_error
from subspace_lab.figures.page import VENUES
from subspace_lab.figures.style import COLUMN_WIDTH
from subspace_lab.runs.projections import projection_steps
from subspace_lab.runs.run import Run

FORMATS = ("png", "pdf", "svg", "none")
RUN = (
    "a run directory, a PEFT adapter folder, a Trainer output folder with checkpoints, a hub id, "
    "or a quoted glob of run directories; may be given several times"
)
FORMAT = "of figures; may be given several times; none: no figure (default: png and pdf)"
VENUE = f"the venue whose column a figure fills (default: {COLUMN_WIDTH} inches)"
BY = "curves of each projection or layer, in place of the median over all modules"
STEPS = (
    "which recorded steps: a list such as 0,10,100, every:K, log:K (K per decade), or last "
    "(default: all)"
)
MODULES = (
    "which modules: projections such as q_proj, full paths, or quoted globs such as "
    "'*.layers.0.*' (default: all)"
)


@exit_code_2_on_user_error
def run_analysis(analysis: Analysis, arguments: Sequence[str] | None = None) -> None:
    """Run an analysis from the command line: open runs, compute, draw, write, and say where.

    Without `arguments` of the command line those of the process are taken.

    Raises:
        UserError: if a run, step or module is not available, or a run lacks what is needed.
    """
    if arguments is None:
        gc.freeze()  # what imports made stays: walking through it at exit takes half a second
    chosen = vars(parser_of(analysis).parse_args(arguments))
    runs = open_named_runs(chosen["run"] or [])
    for run in runs:
        check_needs(run, analysis.needs)
    options = {name: chosen[name] for name in analysis.options}
    steps, modules = chosen.get("steps"), chosen.get("modules")
    table = table_of(analysis, runs, steps=steps, modules=modules, options=options)
    write_results(analysis, runs, table, arguments=chosen)


def parser_of(analysis: Analysis) -> argparse.ArgumentParser:
    """Make an analysis's parser; its help is the module's docstring."""
    parser = argparse.ArgumentParser(
        prog=f"python -m analyses.{analysis.name}",
        description=analysis.description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add, needed = parser.add_argument, not analysis.without_runs
    add("--run", "--runs", action="append", nargs="+", required=needed, metavar="RUN", help=RUN)
    files = " or ".join(f"FILE.{extension}" for extension in analysis.texts)
    where = f"where to write{', or ' * bool(files)}{files}"
    default = "RUN/analyses; for several runs comparisons/NAMES"
    add("--out", type=Path, metavar="FOLDER", help=f"{where} (default: {default})")
    on_or_off = argparse.BooleanOptionalAction
    add("--csv", action=on_or_off, default=analysis.csv, help="write the tables as CSV, too")
    if analysis.plot is not None:
        add("--format", action="append", choices=FORMATS, help=FORMAT)
        add_width(parser)
        add("--title", choices=("above", "none"), default="above", help="of figures, or none")
        if any(plot.splits for plot in analysis.plots.values()):
            add("--by", choices=("projection", "layer"), help=BY)
    if analysis.selects:
        add("--steps", metavar="STEPS", help=STEPS)
        add("--modules", nargs="+", metavar="PATTERN", help=MODULES)
    for name, settings in analysis.options.items():
        spellings = dict.fromkeys((f"--{name}", f"--{name.replace('_', '-')}"))
        add(*spellings, dest=name, **settings)
    return parser


def add_width(parser: argparse.ArgumentParser) -> None:
    """Let a command ask for the width of its figures, which `kit.page_of` reads."""
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--venue", choices=VENUES, help=VENUE)
    size.add_argument("--width", type=inches, metavar="INCHES", help="of figures")


def inches(text: str) -> float:
    """Read a width that figures can have.

    Raises:
        argparse.ArgumentTypeError: if it is not a number from 1 to 50.
    """
    try:
        width = float(text)
    except ValueError:
        width = math.nan
    if not 1 <= width <= 50:
        raise argparse.ArgumentTypeError(f"{text} is not a width in inches, from 1 to 50")
    return width


def table_of(
    analysis: Analysis,
    runs: Sequence[Run],
    *,
    steps: str | None = None,
    modules: Sequence[str] | None = None,
    options: Mapping[str, Any] | None = None,
) -> pd.DataFrame:
    """Make one table of several runs, with a column `configuration` where some share theirs.

    `steps` and `modules` are those of --steps and --modules, `options` the analysis's own.

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
    if Needs.DISPLACEMENTS in analysis.needs:
        return projection_steps(run.path) or run.steps
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
