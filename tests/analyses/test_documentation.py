"""docs/run-directory.md says what is in a run's tables and chunks."""

from __future__ import annotations

import importlib
import re

import pytest

from subspace_lab.recording import files
from tests.analyses.documented import DOCUMENT, documented

TABLES = (
    "effective_rank", "subspace_angles", "frame_drift", "regulariser", "merged_spectra",
    "mask_theory",
)  # fmt: skip


@pytest.mark.parametrize("name", TABLES)
def test_tables_have_the_documented_columns(run, name):
    table = importlib.import_module(f"analyses.{name}").compute(run)
    assert set(table.columns) == documented(name)


def test_chunks_and_metrics_have_the_documented_names(run):
    text = DOCUMENT.read_text()
    chunk = next(run.path.glob("cores/*.safetensors"))
    with files.open_tensors(chunk) as tensors:
        names = set(tensors.keys()) - {"steps"}
    sides = {re.sub("^r4/(row|column)", "rR/SIDE", name) for name in names if ".R" not in name}
    assert len(names) == 10 and sides == set(re.findall(r"`(rR/SIDE[a-z.]+)`", text))
    for column in run.metrics.columns:
        assert f"`{column}`" in text
