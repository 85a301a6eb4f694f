"""The demo's script, end to end on the pocket model: four runs, every analysis, one page."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pandas as pd

from analyses.mask_theory import against_lora

SCRIPT = Path(__file__).parent.parent / "scripts" / "demo.py"
NAMES = ("lora", "paper-eq2", "paper-code", "step")


def demo(folder: Path) -> subprocess.CompletedProcess[str]:
    preset = folder / "small.yaml"
    preset.write_text("{base: pocket, task: pocket, steps: 6, train_size: 48, eval_size: 16}\n")
    command = [sys.executable, SCRIPT, "--preset", preset, "--out", folder / "demo"]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True)


def test_the_demo_makes_runs_tables_figures_and_a_page_and_reuses_them(tmp_path):
    first = demo(tmp_path)
    assert first.returncode == 0, first.stderr
    page = (tmp_path / "demo" / "report.html").read_text()
    figures = re.findall(r"src='data:image/png;base64,[A-Za-z0-9+/=]{2000,}'", page)
    assert len(figures) >= 6
    left_out = re.findall(r"Not computed: run <code>python -m analyses\.(\w+)", page)
    assert set(left_out) == {"rank_curve", "sharpness"}  # too slow for the demo
    assert "http" not in page.replace("http-equiv", "")
    for name in NAMES:
        assert name in page
        assert list((tmp_path / "demo" / name / "analyses").glob("*.pdf"))
    theory = pd.read_parquet(tmp_path / "demo" / "comparisons" / "mask_theory.parquet")
    assert set(theory["run"]) == set(NAMES) and "comparisons/mask_theory.parquet" in page
    theory = theory[theory["kind"] != "not testable"]
    compared = theory.loc[theory["prediction"] == against_lora.length_b.name, "run"]
    assert set(compared) == set(NAMES) - {"lora"}
    tables = ("*/analyses/*.parquet", "comparisons/*.parquet")
    paths = [path for pattern in tables for path in (tmp_path / "demo").glob(pattern)]
    times = {path: path.stat().st_mtime_ns for path in paths}
    second = demo(tmp_path)
    assert second.returncode == 0 and second.stdout.count("nothing to do") == len(NAMES)
    assert {p: p.stat().st_mtime_ns for p in times} == times
