"""Train a grid of runs from one file, here or on a Slurm cluster.

    python -m subspace_lab.sweep --config keep-prob --out runs/keep-prob
    python -m subspace_lab.sweep --config keep-prob --out runs/keep-prob --status
    python -m subspace_lab.sweep --config keep-prob --out runs/keep-prob --select
    python -m subspace_lab.sweep --config mine.yaml --out runs/mine --executor slurm

A sweep file names presets and fields that all runs share and a grid of what differs:

    presets: [pocket]
    fields: {steps: 40}
    grid:
      - {method: [lora, pissa], seed: [0, 1, 2]}
      - {method: droplora, keep_prob: [0.5, 0.7, 0.9], seed: [0, 1, 2]}
    select: {field: keep_prob, score: response_loss}

Finished runs are skipped and interrupted ones resumed, so the same command continues a sweep. Runs
that diverge are finished, and named.
--select reports the value with the best mean score on validation rows; it never reads test data.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from subspace_lab.errors import exit_code_2_on_user_error

if TYPE_CHECKING:
    import pandas as pd


@exit_code_2_on_user_error
def main() -> None:
    """Parse the command line, and run, show or select."""
    parser = argparse.ArgumentParser(
        prog="python -m subspace_lab.sweep",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", required=True, help="a sweep file, or a shipped one's name")
    parser.add_argument("--out", required=True, type=Path, help="the folder of the runs")
    either = parser.add_mutually_exclusive_group()
    either.add_argument("--status", action="store_true", help="print how far the runs are")
    either.add_argument("--select", action="store_true", help="print what validation rows select")
    either.add_argument(
        "--executor",
        choices=("local", "slurm"),
        help="local: one run after another (default); slurm: a job array through submitit",
    )
    arguments = parser.parse_args()

    from subspace_lab.files import replacing
    from subspace_lab.interruption import interruptible
    from subspace_lab.sweeping.grid import read_sweep
    from subspace_lab.sweeping.running import run_here, submit
    from subspace_lab.sweeping.selection import select
    from subspace_lab.sweeping.state import refuse_other_runs, status_table

    sweep, out = read_sweep(arguments.config), arguments.out
    refuse_other_runs(sweep, out)
    if arguments.status:
        _print(status_table(sweep, out))
    elif arguments.select:
        chosen = select(sweep, out)
        _print(chosen)
        with replacing(out / "selection.csv") as unfinished:
            chosen.to_csv(unfinished, index=False)
        print(f"wrote {out / 'selection.csv'}")
    elif arguments.executor == "slurm":
        jobs = submit(sweep, out)
        print(f"submitted {len(jobs)} of {len(sweep.jobs)} runs")
    else:
        with interruptible():
            try:
                failed = run_here(sweep, out)
            except KeyboardInterrupt as interrupt:
                interrupt.add_note("interrupted: the same command continues the sweep")
                raise
        table = status_table(sweep, out)
        _print(table)
        if "diverged_at" in table:
            names = ", ".join(table.loc[table["diverged_at"].notna(), "run"])
            print(f"warning: these runs have diverged: {names}", file=sys.stderr)
        for name in failed:
            print(f"failed: {name}, see {out / 'logs' / name}.log", file=sys.stderr)
        sys.exit(bool(failed))


def _print(table: pd.DataFrame) -> None:
    print(table.to_string(index=False, na_rep="", float_format="{:.4g}".format))


if __name__ == "__main__":
    main()
