"""docs/run-directory.md says what is in a run's tables and chunks."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

from analyses.kit.command import table_of
from analyses.kit.needs import Needs
from analyses.registry import all_analyses
from subspace_lab import files
from tests.analyses.documented import DOCUMENT, documented

README = Path(__file__).parents[2] / "README.md"
OTHERS = ["claims", "paired_differences", "paper_tables", "report"]  # commands of another kind
OF_THE_RECORD = [
    analysis for analysis in all_analyses().values()
    if not analysis.needs & (Needs.MODEL | Needs.METRICS)
]  # fmt: skip


def test_the_readme_lists_every_analysis_with_its_question():
    section = README.read_text().partition("## Questions")[2].partition("## ")[0]
    listed = re.findall(r"^\| `(\w+)` \| (.*) \|$", section, re.MULTILINE)
    declared = [(name, analysis.question) for name, analysis in all_analyses().items()]
    assert listed[: len(declared)] == declared
    assert [name for name, _ in listed[len(declared) :]] == OTHERS


def test_each_analysis_says_its_name_and_what_its_numbers_mean():
    for name, analysis in all_analyses().items():
        module = importlib.import_module(f"analyses.{name}")
        assert analysis is module.ANALYSIS and analysis.description == module.__doc__
        assert f"python -m analyses.{name} --run" in analysis.description


@pytest.mark.parametrize("analysis", OF_THE_RECORD, ids=lambda analysis: analysis.name)
def test_tables_have_the_documented_columns(run, analysis):
    steps = "4,6" if analysis.name == "grassmann" else None
    assert set(table_of(analysis, [run], steps=steps).columns) == documented(analysis.name)


def test_chunks_and_metrics_have_the_documented_names(run):
    text = DOCUMENT.read_text()
    chunk = next(run.path.glob("cores/*.safetensors"))
    with files.open_tensors(chunk) as tensors:
        names = set(tensors.keys()) - {"steps"}
    sides = {re.sub("^r4/(row|column)", "rR/SIDE", name) for name in names if ".R" not in name}
    assert len(names) == 10 and sides == set(re.findall(r"`(rR/SIDE[a-z.]+)`", text))
    for column in run.metrics.columns:
        assert f"`{column}`" in text
