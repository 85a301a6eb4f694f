"""Run the registered experiments: choose learning rates, train the final cells, compare them.

    python -m experiments x1 x2 --jobs 2
    python -m experiments x6 --regimes A --arms step noise-only
    python -m experiments x1 --smoke --out /tmp/smoke
    python -m experiments x7 --jobs 8 --data_dir DATA    # a GPU; DATA/math/gsm8k_train.jsonl
    python -m experiments x7-short --jobs 2 --data_dir FOLDER    # experiments.short_gsm8k's FOLDER
    python -m experiments claims

Finished runs are skipped, and shared among experiments, so the same command continues. Tables and
figures go to OUT/results; docs/why-rank-dropout.md reads them. `claims` trains nothing: it decides
on the paper's claims by the tables in OUT/results, and writes claims.csv beside them.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd

from analyses import kit
from experiments import against_theory, inference, ranks, trajectories
from experiments.comparisons import compare
from experiments.design import Design, Rates, part_of, read_design, with_data
from experiments.figures import draw_experiment
from experiments.results import results_table
from experiments.running import own_rates, train, validation_losses
from experiments.verdicts import verdict_table
from subspace_lab.errors import UserError, exit_code_2_on_user_error
from subspace_lab.figures.style import paper_style, save
from subspace_lab.files import replacing
from subspace_lab.interruption import interruptible


@exit_code_2_on_user_error
def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "names", nargs="+", metavar="NAME", help="x1 to x7, x7-short, finer, claims"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("runs/experiments"), help="the folder of runs and results"
    )
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side (default: 1)")
    parser.add_argument("--smoke", action="store_true", help="a small version of each")
    parser.add_argument("--regimes", nargs="+", metavar="REGIME", help="only these")
    parser.add_argument("--arms", nargs="+", metavar="ARM", help="only these and the baseline")
    parser.add_argument(
        "--data_dir", type=Path, metavar="FOLDER", help="read the task of x7 here, not from the hub"
    )
    kit.add_width(parser)
    arguments = parser.parse_args()
    with interruptible():
        for name in arguments.names:
            if name == "claims":
                decide_claims(arguments.out / "results")
                continue
            design = read_design(name, smoke=arguments.smoke)
            part = part_of(design, regimes=arguments.regimes, arms=arguments.arms)
            if arguments.data_dir is not None:
                part = with_data(part, arguments.data_dir)
            page = kit.page_of(vars(arguments))
            run_experiment(part, arguments.out, jobs=arguments.jobs, page=page)


def run_experiment(design: Design, out: Path, *, jobs: int, page: kit.Page) -> None:
    """Train what is missing of an experiment, and write its tables and figures."""
    train(design, design.rate_cells(), out / "rates", jobs=jobs)
    losses = validation_losses(design, out / "rates")
    own = own_rates(losses)
    train(design, design.final_cells(own), out / "final", jobs=jobs)
    tables = tables_of(design, out / "final", own) | {"rates": losses}
    results = out / "results"
    results.mkdir(parents=True, exist_ok=True)
    for kind, table in tables.items():
        _write(table, results / f"{design.name}-{kind}.csv")
    with paper_style():
        for kind, figure in draw_experiment(design, tables, page).items():
            for form in ("pdf", "png"):
                path = results / f"{design.name}-{kind}.{form}"
                with replacing(path) as unfinished:
                    save(figure, unfinished, format=form)
            print(f"wrote {path.with_suffix('')}.{{pdf,png}}")


def decide_claims(results: Path) -> None:
    """Write the verdicts on the paper's claims beside the tables that they rest on.

    Raises:
        UserError: if the folder has no tables.
    """
    if not any(results.glob("x*.csv")):
        raise UserError(f"there are no tables of experiments in {results}: run an experiment first")
    _write(verdict_table(results), results / "claims.csv")


def tables_of(design: Design, final: Path, own: Rates) -> dict[str, pd.DataFrame]:
    """Make the tables of an experiment, by kind."""
    table = results_table(design, final, own)
    tables = {"runs": table, "differences": compare(table, design)}
    if design.measures in ("ranks", "theory"):
        tables["ranks"] = ranks.rank_table(design, final, own)
        tables["rank-differences"] = ranks.rank_differences(tables["ranks"], design)
        tables["trajectories"] = trajectories.trajectory_table(design, final, own)
        tables["equal-norm"] = trajectories.at_equal_norm(tables["trajectories"], design)
    if design.measures == "theory":
        tables["theory"] = against_theory.theory_table(design, final, own)
    if design.measures == "inference":
        tables["inference"] = inference.inference_table(design, final, own)
        tables["inference-differences"] = inference.inference_differences(tables["inference"])
    return tables


def _write(table: pd.DataFrame, path: Path) -> None:
    with replacing(path) as unfinished:
        table.to_csv(unfinished, index=False, float_format="%.6g")
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
