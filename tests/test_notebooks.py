"""The notebooks run from top to bottom, keep outputs that still hold, and end in what these show."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.client import KernelManager
from nbformat import NotebookNode

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
NUMBER = re.compile(r"(?<![\w.])-?\d+\.\d+(?:e[-+]?\d+)?(?![\w.])")
BYTES = 5_000_000


@pytest.fixture(scope="module")
def kernel() -> Iterator[KernelManager]:
    """One kernel for all notebooks, since its imports take longer than they do."""
    manager = KernelManager(kernel_name="python3")
    manager.start_kernel(cwd=str(ROOT))
    yield manager
    manager.shutdown_kernel(now=True)


def execute(cells: list[NotebookNode], kernel: KernelManager, folder: Path) -> NotebookNode:
    """Run cells in a folder, in a namespace without what earlier notebooks left."""
    fresh = f"%reset -f\nimport os\nos.chdir({str(folder)!r})\ndel os"
    copies = [nbformat.from_dict(cell) for cell in cells]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(fresh), *copies])
    NotebookClient(notebook, km=kernel, timeout=300).execute(cleanup_kc=True)
    return notebook


def outputs(notebook: NotebookNode) -> list[NotebookNode]:
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


def numbers(text: str) -> list[str]:
    return NUMBER.findall(text)


def shown_numbers(notebook: NotebookNode) -> list[float]:
    texts = [one.get("data", {}).get("text/plain", one.get("text", "")) for one in outputs(notebook)]
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
    first, *_, last = kept.cells
    assert "You learn" in first.source or "you learn" in first.source.lower()
    assert last.source.startswith("## Conclusion")
    done = execute(kept.cells, kernel, FOLDER)
    kinds = [[sorted(one.get("data", {"text": ""})) for one in outputs(n)] for n in (kept, done)]
    assert kinds[0] == kinds[1], "run it again and keep its outputs"
    assert any("image/png" in kind for kind in kinds[0]) or "07" in path.stem
    assert not any(one["output_type"] in ("error", "stderr") for one in outputs(done))
    for notebook in (kept, done):
        assert not_shown(last.source, shown_numbers(notebook)) == []


def test_notebooks_start_from_the_root_as_well(kernel):
    cells = [next(c for c in nbformat.read(p, 4).cells if c.cell_type == "code") for p in NOTEBOOKS]
    places = [cell.source[cell.source.index("ROOT = ") :].splitlines()[:2] for cell in cells]
    assert len({"\n".join(place) for place in places}) == 1  # so that one stands for all
    execute(cells[:1], kernel, ROOT)


def test_the_example_is_small_and_lacks_nothing_that_a_checkout_would():
    files = [path for path in (FOLDER / "example").rglob("*") if path.is_file()]
    assert 0 < sum(path.stat().st_size for path in files) < BYTES


def test_a_stale_number_in_a_conclusion_is_found():
    assert not_shown("0.61 against LoRA's 0.53, ten seeds", [0.61, 0.5349]) == []
    assert not_shown("a difference of -0.056 [-0.082, -0.030]", [-0.0561, -0.0819]) == ["-0.030"]
