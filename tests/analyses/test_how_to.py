"""docs/how-to/new-analysis.md, followed literally: one new file makes a whole analysis."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from tests.documents import ROOT, blocks, execute

MAX_LINES = 30


@pytest.fixture(scope="module")
def source() -> str:
    (block,) = blocks("docs/how-to/new-analysis.md", "python")
    return block.content


def test_the_figures_of_the_page_on_papers(run, tmp_path, monkeypatch):
    shutil.copytree(run.path, tmp_path / "runs" / "first")
    monkeypatch.chdir(tmp_path)
    names = execute("docs/how-to/figures.md")
    assert b"/FontFile2" in (tmp_path / "combined.pdf").read_bytes()
    figure = names["figure"]
    assert isinstance(figure, Figure)
    (legend,) = [*figure.legends, *filter(None, [axes.get_legend() for axes in figure.axes])]
    shown = {text.get_text() for text in legend.get_texts()}
    assert {"q_proj", "v_proj", "down_proj"} <= shown


def test_it_is_short(source):
    assert len(source.splitlines()) <= MAX_LINES


def test_one_file_gives_command_table_figure_and_summary(source, run, tmp_path):
    package = tmp_path / "analyses"
    shutil.copytree(ROOT / "analyses", package, ignore=shutil.ignore_patterns("__pycache__"))
    (package / "condition_number.py").write_text(source, encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}

    def python(*arguments: object) -> str:
        command = [sys.executable, *map(str, arguments)]
        done = subprocess.run(
            command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "sigma_1 / sigma_r" in python("-m", "analyses.condition_number", "--help")
    listed = python(
        "-c", "from analyses.registry import all_analyses; print(*all_analyses().keys())"
    )
    assert "condition_number" in listed.split()
    python("-m", "analyses.condition_number", "--run", run.path, "--csv", "--out", "out")

    out = tmp_path / "out"
    table = pd.read_parquet(out / "condition_number.parquet")
    columns = ["run", "step", "module", "layer", "projection", "side", "condition_number"]
    assert list(table.columns) == columns
    module = run.modules["module"].iloc[0]
    factors = run.factors(6, module)
    for side, matrix in (("row", factors.A), ("column", factors.B)):
        sigma = np.linalg.svd(matrix.double().numpy(), compute_uv=False)
        rows = table[(table["step"] == 6) & (table["module"] == module) & (table["side"] == side)]
        assert rows["condition_number"].item() == pytest.approx(sigma[0] / sigma[-1], rel=1e-9)
    drawn = pd.read_csv(out / "condition_number.figure.csv")
    last = drawn[(drawn["step"] == 6) & (drawn["name"] == "row")]
    rows = table[(table["step"] == 6) & (table["side"] == "row")]
    assert last["center"].item() == pytest.approx(rows["condition_number"].median())
    summary = json.loads((out / "condition_number.json").read_text(encoding="utf-8"))["summary"]
    assert summary["tiny, step 6, row"]["condition_number"] == last["center"].item()
    assert {path.suffix for path in out.glob("condition_number.p*")} == {".parquet", ".png", ".pdf"}
