"""The demo's script, end to end on the pocket model: two runs, a sweep, all analyses, one page."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pandas as pd

from analyses.mask_theory import against_lora
from subspace_lab.sweeping.grid import read_sweep

SCRIPT = Path(__file__).parent.parent / "scripts" / "demo.py"
NAMES = ("lora", "step")
SWEEP = """
fields: {steps: 2, eval_size: 4, test_size: 4, eval_every: 0, cores: never}
grid:
  - preset: [bench/label-noise, bench/few-examples, bench/one-pass]
    method: lora
    learning_rate: [1.0e-3, 2.0e-3]
  - preset: [[bench/label-noise, step], [bench/few-examples, step], [bench/one-pass, step]]
    learning_rate: [1.0e-3, 2.0e-3]
"""


def demo(folder: Path) -> subprocess.CompletedProcess[str]:
    preset, sweep = folder / "small.yaml", folder / "sweep.yaml"
    preset.write_text("{base: pocket, task: pocket, steps: 6, train_size: 48, eval_size: 16}\n")
    sweep.write_text(SWEEP)
    command = [sys.executable, SCRIPT, "--preset", preset, "--sweep", sweep]
    command += ["--out", folder / "demo"]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True)


def test_the_demo_makes_runs_tables_figures_and_a_page_and_reuses_them(tmp_path):
    first = demo(tmp_path)
    assert first.returncode == 0, first.stderr
    page = (tmp_path / "demo" / "report.html").read_text()
    assert len(re.findall(r"src='data:image/svg\+xml;base64,[A-Za-z0-9+/=]{2000,}'", page)) >= 6
    left_out = re.findall(r"Not computed: run <code>python -m analyses\.(\w+)", page)
    assert set(left_out) == {"rank_curve", "sharpness"}  # too slow for the demo
    assert "http" not in re.sub(r"base64,[A-Za-z0-9+/=]+", "", page)
    for name in NAMES:
        assert name in page
        assert list((tmp_path / "demo" / name / "analyses").glob("*.pdf"))
    theory = pd.read_parquet(tmp_path / "demo" / "comparisons" / "model" / "mask_theory.parquet")
    assert set(theory["run"]) == set(NAMES) and "comparisons/model/mask_theory.parquet" in page
    theory = theory[theory["kind"] != "not testable"]
    compared = theory.loc[theory["prediction"] == against_lora.length_b.name, "run"]
    assert set(compared) == set(NAMES) - {"lora"}
    for regime in ("label-noise", "few-examples", "one-pass"):
        assert f"href='comparisons/{regime}/paired_differences.csv'" in page
    assert "no difference has an interval" in page  # of one seed
    tables = ("*/analyses/*.parquet", "comparisons/*/*.parquet")
    paths = [path for pattern in tables for path in (tmp_path / "demo").glob(pattern)]
    times = {path: path.stat().st_mtime_ns for path in paths}
    second = demo(tmp_path)
    assert second.returncode == 0 and second.stdout.count("nothing to do") == len(NAMES)
    assert {p: p.stat().st_mtime_ns for p in times} == times


def test_the_demos_sweep_trains_each_regime_alike():
    jobs = read_sweep("regimes").jobs
    of_regimes = {}
    for job in jobs:
        config = job.config
        problem = (config.train_size, config.label_noise)
        mask = config.granularity if config.masked else None
        of_regimes.setdefault(problem, []).append((mask, config.learning_rate, config.seed))
        assert (config.test_size, config.steps, config.rank) == (200, 200, 16)
    assert set(of_regimes) == {(128, 0.4), (64, 0.0), (1600, 0.0)}
    (same,) = {frozenset(cells) for cells in of_regimes.values()}
    masks, rates, seeds = (None, "step", "token"), (1e-3, 2e-3), (0, 1, 2)
    assert same == {(mask, rate, seed) for mask in masks for rate in rates for seed in seeds}
