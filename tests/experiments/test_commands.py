"""Small versions of experiments run by the command, one with each kind of measure."""

from __future__ import annotations

import subprocess
import sys

import matplotlib.image
import pandas as pd
import pytest


def experiments(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "experiments", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_small_versions_of_experiments_write_their_tables_and_figures(tmp_path):
    part = ("--smoke", "--arms", "step", "--venue", "icml")
    arguments = ("x2", "x4", "x6", *part, "--out", tmp_path, "--jobs", 2)
    done = experiments(*arguments)
    assert done.returncode == 0, done.stderr
    results = tmp_path / "results"
    runs = pd.read_csv(results / "x2-runs.csv")
    assert runs.groupby(["regime", "arm"])["seed"].nunique().to_dict() == {
        ("A", "LoRA"): 2,
        ("A", "step"): 2,
    }
    assert runs["test_calibrated_loss"].notna().all()
    differences = pd.read_csv(results / "x2-differences.csv")
    loss = differences[differences["outcome"] == "test_calibrated_loss"].set_index("at")
    means = runs.groupby("arm")["test_calibrated_loss"].mean()
    expected = means["step"] - means["LoRA"]  # one rate, so that it is both arms' own
    assert abs(loss.loc["own", "difference"] - expected) < 1e-5
    inference = pd.read_csv(results / "x4-inference.csv")
    assert set(inference["examples"]) == {10}
    full = inference[inference["predictor"] == "full"].set_index(["arm", "seed"])["loss"]
    scored = runs.set_index(["arm", "seed"])["test_response_loss"]
    pd.testing.assert_series_equal(full, scored[full.index], check_names=False, rtol=1e-3)
    assert pd.read_csv(results / "x6-ranks.csv").set_index("arm")["runs"].to_dict() == {
        "LoRA": 1,
        "step": 2,
    }
    entropy = [
        pd.read_csv(results / f"x6-{kind}.csv").query("arm == 'LoRA'")[column].tolist()
        for kind, column in (("ranks", "single_entropy"), ("theory", "entropy"))
    ]
    assert entropy[0] == pytest.approx(entropy[1], rel=1e-4)
    assert sorted(path.name for path in results.glob("*.pdf")) == [
        "x2-differences.pdf",
        "x4-inference.pdf",
        "x6-ranks.pdf",
    ]
    widths = {matplotlib.image.imread(path).shape[1] for path in results.glob("*.png")}
    assert widths == {975}  # 3.25 inches
    trained = sorted((tmp_path / "final").glob("*/metrics.parquet"))
    times = [path.stat().st_mtime_ns for path in trained]
    assert experiments(*arguments).returncode == 0  # nothing is trained again
    assert [path.stat().st_mtime_ns for path in trained] == times


def test_an_unknown_arm_is_named(tmp_path):
    done = experiments("x1", "--arms", "steps", "--out", tmp_path)
    assert done.returncode == 2
    assert "x1 has no arm 'steps'" in done.stderr
