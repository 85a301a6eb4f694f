"""What a command writes: texts and several figures beside the tables, in a folder or by a name."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from analyses.kit import Analysis, Needs, Page, Plot, run_analysis


def draw(table: pd.DataFrame, page: Page) -> None:
    axes = page.panels(["sizes"])
    axes["sizes"].plot(table["size"])


ANALYSIS = Analysis(
    name="sizes",
    description=None,
    question="how long are the names?",
    needs=Needs(0),
    compute=lambda runs, *, more: pd.DataFrame({"size": [len(run.name) + more for run in runs]}),
    summarize=lambda table: {"largest": int(table["size"].max()) if len(table) else 0},
    plot={
        "first": Plot(draw),
        "second": Plot(draw, data=lambda table: 2 * table[["size"]]),
    },
    texts={"txt": lambda table: f"{len(table)} names\n"},
    on_screen=lambda table: f"in all {table['size'].sum()}",
    options={"more": {"type": int, "default": 0}},
    compares=True,
    selects=False,
    without_runs=True,
    csv=True,
)


def written(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_texts_and_figures_stand_beside_the_tables(run, tmp_path, capsys):
    arguments = ["--runs", str(run.path), "--more", "3", "--out", str(tmp_path)]
    run_analysis(ANALYSIS, [*arguments, "--format", "svg"])
    assert written(tmp_path) == {
        "sizes.parquet", "sizes.csv", "sizes.txt", "sizes.json",
        "first.svg", "second.svg", "second.figure.parquet", "second.figure.csv",
    }  # fmt: skip
    size = len(run.name) + 3
    assert pd.read_parquet(tmp_path / "sizes.parquet")["size"].tolist() == [size]
    assert pd.read_csv(tmp_path / "second.figure.csv")["size"].tolist() == [2 * size]
    assert (tmp_path / "sizes.txt").read_text() == "1 names\n"
    assert json.loads((tmp_path / "sizes.json").read_text())["summary"] == {"largest": size}
    printed = capsys.readouterr().out
    assert f"in all {size}" in printed and "largest" not in printed
    assert all(f"wrote {tmp_path / name}" in printed for name in written(tmp_path))


def test_a_file_gives_its_name_to_the_others(tmp_path):
    run_analysis(ANALYSIS, ["--out", str(tmp_path / "mine.txt"), "--no-csv", "--format", "none"])
    assert written(tmp_path) == {"mine.parquet", "mine.txt", "mine.json"}


def test_what_an_analysis_does_not_take_is_refused(capsys):
    with pytest.raises(SystemExit):
        run_analysis(ANALYSIS, ["--steps", "last"])
    assert "--steps" in capsys.readouterr().err
