"""The line that `analyses.watch` prints is what the record says."""

from __future__ import annotations

import math
import os
import shutil

import pytest

from analyses import effective_rank, frame_drift, watch
from subspace_lab import files
from subspace_lab.runs.run import Run


@pytest.fixture
def copy(run, tmp_path):
    """A copy of the run that is still training, planned for ten steps of 2 s each."""
    folder = tmp_path / "tiny"
    shutil.copytree(run.path, folder)
    set_status(folder, "running", planned_steps=10)
    files.write_table(folder / "metrics.parquet", run.metrics.assign(seconds=2.0))
    return folder


def set_status(folder, status, **facts):
    description = files.read_json(folder / "run.json")
    files.write_json(folder / "run.json", description | {"status": status, **facts})


def test_the_line_of_a_run_that_trains(copy):
    os.utime(copy / "metrics.parquet", (1000.0, 1000.0))
    line = watch.describe(Run(copy), now=1060.0)
    run = Run(copy)
    ranks = effective_rank.compute(run, steps=[6], measures=["entropy"])
    rank = ranks.loc[ranks["matrix"] == "update", "value"].median()
    drift = frame_drift.compute(run, steps=[6]).query("since == 'previous'")
    A, B = (drift.loc[drift["side"] == side, "max_angle"].median() for side in ("row", "column"))
    assert line == (
        f"tiny: step 6 of 10, loss {run.metrics['loss'].iloc[-1]:.4g}, effective rank {rank:.3g}, "
        f"drift A {math.degrees(A):.3g}° and B {math.degrees(B):.3g}°, 0:00:08 left, "
        "recorded 0:01:00 ago"
    )


def test_watching_ends_with_the_run_and_says_what_is_new_once(copy, command, monkeypatch):
    looks = []

    def next_look(seconds):
        looks.append(seconds)
        if len(looks) == 3:
            set_status(copy, "finished")

    monkeypatch.setattr(watch.time, "sleep", next_look)
    done = command("watch", "--run", copy)
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert len(looks) == 3 and len(lines) == 2
    assert "left, recorded" in lines[0] and lines[1].endswith(", finished")


def test_once_prints_one_line_of_a_run_that_trains(copy, command):
    done = command("watch", "--run", copy, "--once")
    assert done.code == 0 and len(done.out.splitlines()) == 1


def test_a_run_that_has_just_begun_and_one_without_a_plan(copy):
    set_status(copy, "running", planned_steps=None, diverged_at=3)
    line = watch.describe(Run(copy), now=0.0)
    assert "step 6, loss" in line and "left" not in line and "diverged at step 3" in line
    (copy / "metrics.parquet").unlink()
    assert watch.describe(Run(copy), now=0.0) == "tiny has recorded no step yet"


def test_before_the_first_step_with_cores_there_is_no_rank(copy, monkeypatch):
    monkeypatch.setattr(Run, "core_steps", [0])
    line = watch.describe(Run(copy), now=0.0)
    assert "loss" in line and "rank" not in line and "drift" not in line


def test_what_is_not_a_run_is_refused(tmp_path, adapter, command):
    for path in (tmp_path / "nowhere", adapter):
        done = command("watch", "--run", path)
        assert done.code == 2 and done.err.startswith("error: ") and str(path) in done.err
