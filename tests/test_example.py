"""A small copy of a run is read like the run, to the rounding that it states."""

from __future__ import annotations

import runpy
from pathlib import Path

import pandas as pd
import pytest
import torch

from analyses import effective_rank
from subspace_lab.runs.run import Run
from subspace_lab.training.config import TrainConfig
from subspace_lab.training.trainer import train

SCRIPT = Path(__file__).parent.parent / "scripts" / "make_example.py"


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> tuple[Run, Run]:
    folder = tmp_path_factory.mktemp("runs")
    full, copy = folder / "full", folder / "copy"
    train(TrainConfig(method="droplora", steps=4, train_size=32, eval_size=8), full)
    for _ in range(2):  # the second one takes the place of the first
        runpy.run_path(str(SCRIPT))["copy_small"](full, copy)
    return Run(full), Run(copy)


def test_the_copy_says_the_same(runs):
    full, copy = runs
    assert copy.description == full.description and copy.steps == full.steps
    pd.testing.assert_frame_equal(copy.metrics, full.metrics)
    for module in full.modules["module"]:
        assert (copy.masks(module)[1] == full.masks(module)[1]).all()
        one, other = (run.core(4, module).change("previous") for run in runs)
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7 * float(other.norm()))
        A = [run.factors(4, module).A.double() for run in runs]
        torch.testing.assert_close(A[1], A[0], rtol=2**-11, atol=2**-25)
    values = [effective_rank.compute(run, measures="entropy")["value"] for run in runs]
    pd.testing.assert_series_equal(*values, rtol=1e-5)


def test_the_copy_takes_less_space(runs):
    copy = runs[1]
    assert sorted(copy.snapshots) == [4] and not list(copy.path.rglob("README.md"))
    assert copy.snapshots[4].factors(copy.modules["module"][0]).A.dtype == torch.float16
    sizes = [sum(f.stat().st_size for f in run.path.glob("cores/*")) for run in runs]
    assert sizes[1] < 0.6 * sizes[0]
