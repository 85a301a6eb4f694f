"""The notebooks run from top to bottom on a small run."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from subspace_lab.training.config import TrainConfig
from subspace_lab.training.trainer import train

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "first"
    train(TrainConfig(method="droplora", steps=6, train_size=48, eval_size=8), out)
    return out


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook(path, run, monkeypatch):
    monkeypatch.setenv("SUBSPACE_LAB_RUN", str(run))
    notebook = nbformat.read(path, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "outputs are not committed"
    NotebookClient(notebook, timeout=300).execute()
    shown = [o for cell in notebook.cells for o in cell.get("outputs", [])]
    assert shown and not any(o["output_type"] == "error" for o in shown)
