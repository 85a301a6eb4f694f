"""The notebooks run, keep outputs that still hold, and end in what these show."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_notebook

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
NUMBER = re.compile(r"(?<![\w.])-?\d+\.\d+(?:e[-+]?\d+)?(?![\w.])")
BYTES = 5_000_000


@pytest.fixture(scope="module")
def kernel() -> Iterator[NotebookClient]:
    """One kernel for all notebooks, since its imports take longer than they do."""
    client = NotebookClient(new_notebook(cells=[new_code_cell()]), timeout=300)
    with client.setup_kernel():
        yield client


def execute(cells: list[NotebookNode], kernel: NotebookClient, folder: Path) -> NotebookNode:
    """Run cells in a folder, in a namespace without what earlier notebooks left."""
    for code in ("%reset -f", f"import os\nos.chdir({str(folder)!r})\ndel os"):
        kernel.execute_cell(new_code_cell(code), 0)
    copies = [nbformat.from_dict(cell) for cell in cells]
    for cell in copies:
        if cell.cell_type == "code":
            kernel.execute_cell(cell, 0)
    return new_notebook(cells=copies)


def outputs(notebook: NotebookNode) -> list[NotebookNode]:
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


def conclusion(notebook: NotebookNode) -> str:
    """Give the text of the last cell, which a cell of code writes from what was computed."""
    last = notebook.cells[-1]
    if last.cell_type == "markdown":
        return last.source
    (output,) = last.outputs
    return output["data"]["text/markdown"]


def numbers(text: str) -> list[str]:
    return NUMBER.findall(text)


def shown_numbers(notebook: NotebookNode) -> list[float]:
    texts = [
        one.get("data", {}).get("text/plain", one.get("text", "")) for one in outputs(notebook)
    ]
    return [float(number) for text in texts for number in numbers(text)]


def not_shown(conclusion: str, shown: list[float]) -> list[str]:
    """Name the numbers of a text that nothing shown comes to, up to one unit of the last place."""
    return [
        number
        for number in numbers(conclusion)
        if not any(
            abs(abs(float(number)) - abs(value)) < 1.01 * 10.0 ** -len(number.split(".")[1])
            for value in shown
        )
    ]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook(path, kernel):
    kept = nbformat.read(path, as_version=4)
    assert "you learn" in kept.cells[0].source.lower()
    assert conclusion(kept).startswith("## Conclusion")
    done = execute(kept.cells, kernel, FOLDER)
    kinds = [[sorted(one.get("data", {"text": ""})) for one in outputs(n)] for n in (kept, done)]
    assert kinds[0] == kinds[1], "run it again and keep its outputs"
    assert not [one.text for one in outputs(done) if one.get("name") == "stderr"]
    for notebook in (kept, done):
        assert not_shown(conclusion(kept), shown_numbers(notebook)) == []
    assert not_shown(conclusion(done), shown_numbers(done)) == []


def test_figures_are_shown_inline():
    shown = [
        "image/png" in one.get("data", {})
        for path in NOTEBOOKS
        for one in outputs(nbformat.read(path, as_version=4))
        if "Figure size" in one.get("data", {}).get("text/plain", "")
    ]
    assert len(shown) >= 8 and all(shown)


def test_notebooks_start_from_the_root_as_well(kernel):
    cells = [next(c for c in nbformat.read(p, 4).cells if c.cell_type == "code") for p in NOTEBOOKS]
    places = [cell.source[cell.source.index("ROOT = ") :].splitlines()[:2] for cell in cells]
    assert len({"\n".join(place) for place in places}) == 1  # so that one stands for all
    execute(cells[:1], kernel, ROOT)


def test_the_example_is_small():
    files = [path for path in (FOLDER / "example").rglob("*") if path.is_file()]
    assert 0 < sum(path.stat().st_size for path in files) < BYTES


def test_a_stale_number_in_a_conclusion_is_found():
    assert not_shown("0.61 against LoRA's 0.53, ten seeds", [0.61, 0.5349]) == []
    assert not_shown("a difference of -0.056 [-0.082, -0.030]", [-0.0561, -0.0819]) == ["-0.030"]
