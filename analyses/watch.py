"""Watches a run while it trains: loss, effective rank and drift of its last step, and time left.

    python -m analyses.watch --run RUN            # a line whenever there is something new
    python -m analyses.watch --run RUN --once     # one line

Everything is read from the run directory, on this machine or on one that shares its disk; a run
brings its record there about twice a minute. Effective rank (entropy) and drift (largest angle
between the row spaces of A, and between the column spaces of B, of the last recorded step and the
one before it) are medians over modules, as `analyses.effective_rank` and `analyses.frame_drift`
have them. Time left counts the seconds that steps take themselves, without evaluations. Watching
ends when the run ends; one that was killed still says that it is running, so the line says how old
the record is.
"""

from __future__ import annotations

import argparse
import math
import time
from datetime import timedelta
from pathlib import Path

from analyses.effective_rank import SPLIT, remark_on_product
from subspace_lab.errors import UserError, exit_code_2_on_user_error
from subspace_lab.runs.run import Run
from subspace_lab.runs.step_numbers import medians, step_numbers

SECONDS_BETWEEN_LOOKS = 5.0
LATEST_STEPS = 50
"""Steps whose mean duration says how long the remaining ones will take."""


def describe(run: Run, *, now: float) -> str:
    """Describe in one line where a run stands `now`, in seconds since the epoch."""
    file = run.path / "metrics.parquet"
    if not file.is_file():
        return f"{run.name} has recorded no step yet"
    metrics = run.metrics
    step, planned = int(metrics["step"].max()), run.description.get("planned_steps")
    parts = [f"{run.name}: step {step}" + (f" of {planned}" if planned else "")]
    losses = metrics.reindex(columns=["loss", "window_loss"]).bfill(axis=1)["loss"].dropna()
    if not losses.empty:
        parts.append(f"loss {losses.iloc[-1]:.4g}")
    parts += _of_last_core(run)
    if run.diverged_at is not None:
        parts.append(f"diverged at step {run.diverged_at}")
    if run.description.get("status") != "running":
        return ", ".join([*parts, str(run.description.get("status"))])
    seconds = metrics["seconds"].tail(LATEST_STEPS).mean()
    if planned and math.isfinite(seconds):
        parts.append(f"{_duration((planned - step) * seconds)} left")
    return ", ".join([*parts, f"recorded {_duration(now - file.stat().st_mtime)} ago"])


def _of_last_core(run: Run) -> list[str]:
    """Give effective rank and drift at the last step with cores; nothing before the first one."""
    steps = [step for step in run.core_steps if step > 0]
    if not steps:
        return []
    table = step_numbers(
        run.cores(steps=[steps[-1]]), {}, since_start=remark_on_product(run) == SPLIT
    )
    numbers = medians(table)
    parts = []
    if "effective_rank" in numbers:
        parts.append(f"effective rank {numbers['effective_rank']:.3g}")
    drifts = [
        f"{side} {math.degrees(numbers[name]):.3g}°"
        for side, name in (("A", "row_drift"), ("B", "column_drift"))
        if name in numbers
    ]
    return [*parts, f"drift {' and '.join(drifts)}"] if drifts else parts


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=max(0, round(seconds))))


def watch(path: Path, *, once: bool) -> None:
    """Print where a run stands, again and again until it ends, or once.

    Raises:
        UserError: if the folder does not hold a recorded run, or ceases to.
    """
    shown = ""
    while True:
        run = Run(path)
        if not run.recorded:
            raise UserError(f"{path} is not a run directory: only runs of a recorder are watched")
        line = describe(run, now=time.time())
        state = line.partition(", recorded ")[0]
        if state != shown:
            print(line, flush=True)
            shown = state
        if once or run.description.get("status") != "running":
            return
        time.sleep(SECONDS_BETWEEN_LOOKS)


@exit_code_2_on_user_error
def main() -> None:
    """Parse the command line and watch."""
    parser = argparse.ArgumentParser(
        prog="python -m analyses.watch",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--run", type=Path, required=True, help="the run directory")
    parser.add_argument("--once", action="store_true", help="print one line and end")
    arguments = parser.parse_args()
    watch(arguments.run, once=arguments.once)


if __name__ == "__main__":
    main()
