"""The command line that all analyses share: open runs, compute, draw, write, and say where.

    parser = analysis_parser("effective_rank", __doc__)
    parser.add_argument("--own-option")
    run_analysis(parser, compute, plot, summarise)

An analysis's own options reach its `compute` by keyword.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analyses.kit.notes import notes as run_notes
from analyses.kit.notes import print_notes
from analyses.kit.selection import open_named_runs, select_modules, select_steps
from subspace_lab.errors import UserError

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from subspace_lab.recording.run import Run

FORMATS = ("png", "pdf", "svg")
SHARED = ("run", "out", "format", "steps", "modules")

Summary = Mapping[str, float | int | str | Mapping[str, float]]


def analysis_parser(name: str, doc: str | None) -> argparse.ArgumentParser:
    """Make the parser with the options of all analyses; its help is the module's docstring."""
    parser = argparse.ArgumentParser(
        prog=f"python -m analyses.{name}",
        description=doc,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(analysis=name)
    parser.add_argument(
        "--run",
        action="append",
        nargs="+",
        required=True,
        metavar="RUN",
        help="a run directory, a PEFT adapter folder, a Trainer output folder with checkpoints, "
        "a hub id, or a quoted glob of run directories; may be given several times",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FOLDER",
        help="where to write (default: RUN/analyses; for several runs comparisons/NAMES)",
    )
    parser.add_argument(
        "--format",
        action="append",
        choices=FORMATS,
        help="of the figure; may be given several times (default: png and pdf)",
    )
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
    return parser


def run_analysis(
    parser: argparse.ArgumentParser,
    compute: Callable[..., pd.DataFrame],
    plot: Callable[[pd.DataFrame], Figure],
    summarise: Callable[[pd.DataFrame], Summary],
    *,
    steps_of: Callable[[Run], Sequence[int]] | None = None,
    of_factors: bool = True,
) -> None:
    """Parse the command line, then compute, draw and write one table for all runs.

    Args:
        parser: from `analysis_parser`, with the analysis's own options.
        compute: of a run, with `steps`, `modules` (None: all) and the own options.
        plot: of the table of all runs.
        summarise: of the table: what is printed and kept in NAME.json.
        steps_of: the steps among which --steps chooses; None: those with cores.
        of_factors: whether it is about modules with factors B and A; otherwise any run will do.

    Raises:
        UserError: if a run, a step or a module cannot be had.
    """
    from analyses.kit.tables import concatenate

    arguments = parser.parse_args()
    runs = open_named_runs(arguments.run)
    own = {name: value for name, value in vars(arguments).items() if name not in SHARED}
    own.pop("analysis")
    steps_of = steps_of or (lambda run: run.steps)
    table = concatenate(
        compute(
            run,
            steps=select_steps(run, steps_of(run), arguments.steps),
            modules=select_modules(run, arguments.modules) if of_factors else arguments.modules,
            **own,
        )
        for run in runs
    )
    if table.empty:
        raise UserError("no data for this analysis at the selected steps: omit --steps")
    table = label(table, runs)
    write_results(arguments, runs, table, plot, summarise, of_factors=of_factors)


def label(table: pd.DataFrame, runs: Sequence[Run]) -> pd.DataFrame:
    """Add a column `configuration` where some runs differ in their seed only, and so share it."""
    from subspace_lab.stats.seeds import label_configurations

    labels = label_configurations({run.name: run.config for run in runs})
    if len(set(labels.values())) < len(runs):
        table["configuration"] = table["run"].astype(str).map(labels).astype("category")
    return table


def write_results(
    arguments: argparse.Namespace,
    runs: Sequence[Run],
    table: pd.DataFrame,
    plot: Callable[[pd.DataFrame], Figure],
    summarise: Callable[[pd.DataFrame], Summary],
    *,
    of_factors: bool = True,
) -> None:
    """Write NAME.parquet, the figure and NAME.json, and print a short summary with the paths.

    Where it is about factors, the notes on each run (`analyses.kit.notes`) are printed, and kept
    in NAME.json and in the table's attribute `notes`.
    """
    from subspace_lab.figures.style import save
    from subspace_lab.recording import files
    from subspace_lab.recording.provenance import provenance

    name = arguments.analysis
    folder = arguments.out or default_folder(runs)
    paths = [folder / f"{name}.parquet"]
    summary = summarise(table)
    figure = plot(table)
    notes = {run.name: run_notes(run) if of_factors else [] for run in runs}
    table.attrs["notes"] = notes
    files.write_table(paths[0], table)
    for form in dict.fromkeys(arguments.format or ("png", "pdf")):
        paths.append(folder / f"{name}.{form}")
        with files.replacing(paths[-1]) as unfinished:
            save(figure, unfinished, format=form)
    paths.append(folder / f"{name}.json")
    files.write_json(
        paths[-1],
        {
            "analysis": name,
            "summary": {key: _jsonable(value) for key, value in summary.items()},
            "runs": [{**_describe(run), "notes": notes[run.name]} for run in runs],
            "arguments": {key: _jsonable(value) for key, value in vars(arguments).items()},
            "provenance": provenance(),
        },
    )
    print(f"{name} of {', '.join(run.name for run in runs)} ({len(table):,} rows)")
    for key, value in summary.items():
        print(f"  {key}: {_shown(value)}")
    print_notes(notes)
    for path in paths:
        print(f"wrote {path}")


def write_comparison(
    folder: Path,
    name: str,
    table: pd.DataFrame,
    text: str,
    figures: Mapping[str, Figure],
    form: str,
) -> None:
    """Write NAME.csv, NAME.md and figures by their names, and print the paths."""
    from subspace_lab.figures.style import save
    from subspace_lab.recording import files

    writers: dict[str, Callable[[Path], object]] = {
        f"{name}.csv": lambda path: table.to_csv(path, index=False),
        f"{name}.md": lambda path: path.write_text(text, encoding="utf-8"),
    }
    for title, figure in figures.items():
        writers[f"{title}.{form}"] = functools.partial(save, figure, format=form)
    for file, write in writers.items():
        with files.replacing(folder / file) as unfinished:
            write(unfinished)
        print(f"wrote {folder / file}")


def default_folder(runs: Sequence[Run]) -> Path:
    if len(runs) == 1:
        return runs[0].output_folder
    names = "+".join(run.name.replace("/", "-") for run in runs)
    return Path("comparisons") / names[:120]


def _describe(run: Run) -> dict[str, Any]:
    return {
        "name": run.name,
        "path": str(run.path),
        "config": run.config,
        "mask": run.mask_law,
        "provenance": run.description.get("provenance", {}),
    }


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_shown(each)}" for key, each in value.items())
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _jsonable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _jsonable(each) for key, each in value.items()}
    return value if isinstance(value, str | int | float | list | None) else str(value)
