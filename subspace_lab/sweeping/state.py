"""How far each run of a sweep is, read from its folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from filelock import Timeout

from subspace_lab import files
from subspace_lab.configurations import different_settings, setting_text
from subspace_lab.errors import UserError
from subspace_lab.recording.lock import run_lock
from subspace_lab.sweeping.grid import Sweep
from subspace_lab.training.config import filled_in

if TYPE_CHECKING:
    import pandas as pd

State = Literal["waiting", "running", "interrupted", "finished"]


def state_of(run: Path) -> State:
    """Tell the state of the run in a folder."""
    description = run / "run.json"
    if description.is_file() and files.read_json(description)["status"] == "finished":
        return "finished"
    if run.parent.is_dir():
        try:
            with run_lock(run).acquire(timeout=0):
                pass
        except Timeout:
            return "running"
    return "interrupted" if description.is_file() else "waiting"


def refuse_other_runs(sweep: Sweep, out: Path) -> None:
    """Check that the runs in a sweep's folder are those of its file, which may have changed since.

    Raises:
        UserError: if it is not a folder, or holds a run of another configuration.
    """
    nearest = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not nearest.is_dir():
        raise UserError(f"{nearest} is not a folder: choose another --out")
    for job in sweep.jobs:
        description = out / job.name / "run.json"
        if not description.is_file():
            continue
        recorded = files.read_json(description).get("config")
        if recorded is None:
            continue
        if names := different_settings(filled_in(recorded), job.config.to_dict()):
            raise UserError(
                f"{out / job.name} differs from the sweep file in {', '.join(names)}: choose "
                "another --out"
            )


def status_table(sweep: Sweep, out: Path) -> pd.DataFrame:
    """Make the status table.

    Its columns are run, state, step (the last on disk), eval_response_loss and eval_exact_match (of
    the last evaluation: nats per response token, and the share of responses that greedy decoding
    writes) and, where a run diverged, diverged_at.
    """
    import pandas as pd

    rows = [
        {
            "run": job.name,
            "state": state_of(out / job.name),
            **last_evaluation(out / job.name),
            "diverged_at": diverged_at(out / job.name),
        }
        for job in sweep.jobs
    ]
    columns = ["run", "state", "step", "eval_response_loss", "eval_exact_match", "diverged_at"]
    table = pd.DataFrame(rows, columns=columns)
    return table if table["diverged_at"].notna().any() else table.drop(columns="diverged_at")


def results_table(sweep: Sweep, out: Path) -> pd.DataFrame:
    """Make the status table with the values of the grid, a column each, after the run's name."""
    import pandas as pd

    values = [
        {
            name: setting_text(value) if isinstance(value, list) else value
            for name, value in job.values.items()
        }
        for job in sweep.jobs
    ]
    status = status_table(sweep, out)
    grid = pd.DataFrame(values, index=status.index)
    return pd.concat([status[["run"]], grid, status.drop(columns="run")], axis=1)


def diverged_at(run: Path) -> int | None:
    """Read the step at which a run diverged; None if it did not, or has not begun."""
    description = run / "run.json"
    return files.read_json(description).get("diverged_at") if description.is_file() else None


def last_evaluation(run: Path) -> dict[str, float]:
    """Read the last step on disk and the last evaluation; empty for a run that has none."""
    path = run / "metrics.parquet"
    if not path.is_file():
        return {}
    from subspace_lab.runs.metrics import evaluations

    metrics = files.read_table(path)
    last = {"step": float(metrics["step"].max())}
    evaluated = evaluations(metrics)
    for column in ("eval_response_loss", "eval_exact_match"):
        if column in evaluated and len(evaluated):
            last[column] = float(evaluated[column].iloc[-1])
    return last
