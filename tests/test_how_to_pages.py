"""The code blocks of the how-to pages about recording run, and do what the pages say."""

from __future__ import annotations

import pytest

from subspace_lab.adapters.mask import RankMask
from subspace_lab.runs.run import Run
from subspace_lab.runs.step_numbers import medians, step_numbers
from tests.documents import execute
from tests.event_files import read_scalars


def test_a_loop_of_your_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    execute("docs/how-to/your-own-loop.md")
    loop, accelerated, resumed = (
        Run(f"runs/{name}") for name in ("loop", "accelerated", "resumed")
    )
    for run in (loop, accelerated, resumed):
        assert run.finished and run.steps == run.core_steps == [0, 1, 2, 3, 4]
        masks = RankMask(0.5, seed=0).law
        module = run.modules["module"].iloc[0]
        expected = [masks.step_mask(t, module, 4).tolist() for t in range(1, 5)]
        assert run.masks(module)[1].tolist() == expected
    assert loop.metrics["loss"].notna().all() and accelerated.metrics["loss"].notna().all()
    for module in loop.modules["module"]:  # the same loop, once with a stop
        assert loop.core(4, module).norm() == pytest.approx(float(resumed.core(4, module).norm()))


def test_live_tracking_beside_the_loss(tmp_path, monkeypatch):
    pytest.importorskip("tensorboard", reason="needs tensorboard")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    execute("docs/how-to/live-tracking.md")
    scalars = read_scalars(tmp_path / "trainer")
    run = Run("runs/mine")
    for step in (2, 4):
        numbers = medians(
            step_numbers(run.cores(steps=[step]), {}, since_start=False), by_projection=True
        )
        for name, value in numbers.items():
            assert scalars[f"train/{name}"][step] == pytest.approx(value, rel=1e-6)
        assert {"effective_rank", "effective_rank/q_proj"} <= numbers.keys()
        assert step in scalars["train/loss"]
