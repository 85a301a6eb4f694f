"""Running the jobs of a sweep: here, some side by side, or on a Slurm cluster."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from tqdm import tqdm

from subspace_lab.errors import UserError
from subspace_lab.sweeping.grid import Job, Sweep
from subspace_lab.sweeping.processes import start, stop
from subspace_lab.sweeping.state import state_of

TAKEN = ("running", "finished")


def command_of(job: Job, run: Path, launch: Sequence[str]) -> list[str]:
    """Give the command that trains a job, or continues it."""
    start = list(launch) or [sys.executable]
    return [*start, "-m", "subspace_lab.train", *job.arguments, f"--out={run}", "--resume=true"]


def run_command(command: Sequence[str], run: str) -> int:
    """Train one run in a process of its own, as a Slurm job does; give its exit code."""
    return run_all({Path(run): command}, jobs=1)[Path(run)]


def run_here(sweep: Sweep, out: Path, *, jobs: int = 1) -> list[str]:
    """Train what is not finished; give the names of failed runs.

    Args:
        sweep: the sweep.
        out: its folder.
        jobs: how many runs are trained side by side; several of them get a thread each.

    Raises:
        UserError: if the command that launches them is not there.
    """
    if sweep.launch and shutil.which(sweep.launch[0]) is None:
        raise UserError(f"there is no command {sweep.launch[0]!r}, with which the sweep launches")
    if jobs > 1:
        os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported
    runs = {out / job.name: job for job in _unfinished(sweep, out)}
    commands = {run: command_of(job, run, sweep.launch) for run, job in runs.items()}
    return [runs[run].name for run, code in run_all(commands, jobs=jobs).items() if code]


def run_all(commands: Mapping[Path, Sequence[str]], *, jobs: int) -> dict[Path, int]:
    """Run the command of each run, some side by side, with a bar that says how long is left.

    A run's output goes to its neighbor `logs/NAME.log`. If this process is interrupted, so are
    those, and they get the time to write their records.

    Returns:
        The exit codes; 0 for a finished run, even if it diverged, and for one that another process
        has taken in the meantime.
    """
    waiting = list(commands)
    active: dict[BaseProcess, Path] = {}
    codes: dict[Path, int] = {}
    with tqdm(total=len(commands), unit="run", smoothing=0, disable=not commands) as progress:
        try:
            while waiting or active:
                while waiting and len(active) < jobs:
                    run = waiting.pop(0)
                    if state_of(run) in TAKEN:
                        codes[run] = 0
                        progress.update()
                        continue
                    log = run.parent / "logs" / f"{run.name}.log"
                    active[start(commands[run], log)] = run
                wait([process.sentinel for process in active])
                for process in [process for process in active if not process.is_alive()]:
                    run = active.pop(process)
                    codes[run] = 0 if state_of(run) in TAKEN else int(process.exitcode or 0)
                    progress.update()
                    progress.set_postfix(failed=sum(map(bool, codes.values())))
        except KeyboardInterrupt:
            stop(list(active))
            raise
    return {run: codes[run] for run in commands}


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
