"""Running the jobs of a sweep: here, one after another, or on a Slurm cluster."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from subspace_lab.errors import UserError
from subspace_lab.sweeping.grid import Job, Sweep
from subspace_lab.sweeping.state import state_of

TAKEN = ("running", "finished")


def command_of(job: Job, run: Path, launch: Sequence[str]) -> list[str]:
    """Give the command that trains a job, or continues it."""
    start = list(launch) or [sys.executable]
    return [*start, "-m", "subspace_lab.train", *job.arguments, f"--out={run}", "--resume=true"]


def run_command(command: Sequence[str], run: str) -> int:
    """Train one run in a process of its own; its output goes to RUN's neighbour `logs/NAME.log`.

    If this process is interrupted, so is that one, and it gets the time to write its record.

    Returns:
        The exit code; 0 for a finished run, even if it diverged, and if another process has taken
        the run in the meantime.
    """
    folder = Path(run)
    if state_of(folder) in TAKEN:
        return 0
    log = folder.parent / "logs" / f"{folder.name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with (
        log.open("a", encoding="utf-8") as stream,
        # A group of its own, so that a launcher and what it has launched are stopped together.
        subprocess.Popen(command, stdout=stream, stderr=stream, process_group=0) as process,
    ):
        try:
            code = process.wait()
        except KeyboardInterrupt:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait()
            raise
    return 0 if state_of(folder) in TAKEN else code


def run_here(sweep: Sweep, out: Path) -> list[str]:
    """Train what is not finished, one run after another; give the names of failed runs.

    Raises:
        UserError: if the command that launches them is not there.
    """
    if sweep.launch and shutil.which(sweep.launch[0]) is None:
        raise UserError(f"there is no command {sweep.launch[0]!r}, with which the sweep launches")
    jobs = _unfinished(sweep, out)
    failed = []
    for job in tqdm(jobs, unit="run", disable=not jobs):
        run = out / job.name
        if run_command(command_of(job, run, sweep.launch), str(run)):
            failed.append(job.name)
    return failed


def submit(sweep: Sweep, out: Path, *, cluster: str = "slurm") -> list[Any]:
    """Submit what is not finished as one job array through submitit; give its jobs.

    Args:
        sweep: the sweep, whose `slurm` settings are those of `submitit.AutoExecutor`.
        out: the sweep's folder.
        cluster: `slurm`; submitit's `local` starts processes on this machine instead.

    Raises:
        UserError: if submitit is missing, there is no Slurm, or a setting is unknown.
    """
    try:
        import submitit
    except ImportError as error:
        raise UserError(
            'the Slurm executor needs submitit: run `pip install "subspace_lab[slurm]"`'
        ) from error
    jobs = _unfinished(sweep, out)
    if not jobs:
        return []
    try:
        executor = submitit.AutoExecutor(folder=out / "slurm" / "%j", cluster=cluster)
        executor.update_parameters(name=out.name, **_settings(sweep.slurm))
    except (RuntimeError, NameError, TypeError, ValueError) as error:
        message = " ".join(str(error).split())
        raise UserError(f"the sweep cannot be submitted to {cluster}: {message}") from error
    runs = [out / job.name for job in jobs]
    commands = [command_of(job, run, sweep.launch) for job, run in zip(jobs, runs, strict=True)]
    submitted: list[Any] = executor.map_array(run_command, commands, list(map(str, runs)))
    return submitted


def _unfinished(sweep: Sweep, out: Path) -> list[Job]:
    return [job for job in sweep.jobs if state_of(out / job.name) not in TAKEN]


def _settings(slurm: Mapping[str, Any]) -> dict[str, Any]:
    return {"timeout_min": 24 * 60, **slurm}
