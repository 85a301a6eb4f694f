"""The documentation site builds without a warning, and shows functions and formulas."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import subprocess
import sys
from html import unescape
from pathlib import Path

import pytest

from tests.documents import ROOT

pytest.importorskip("mkdocs", reason="needs mkdocs")
markdown = pytest.importorskip("markdown")
pytest.importorskip("griffe")


@pytest.fixture(scope="module")
def mathematics():
    path = ROOT / "docs" / "plain_mathematics.py"
    spec = importlib.util.spec_from_file_location("plain_mathematics", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder],
        cwd=ROOT, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    return folder


def public_names(package: Path) -> set[str]:
    """Full names of the public functions and classes of a package's modules."""
    return {
        f"subspace_lab.{package.name}.{path.stem}.{node.name}"
        for path in package.glob("[!_]*.py")
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
    }


@pytest.mark.parametrize(("package", "size"), [("linalg", 40), ("theory", 90), ("stats", 8)])
def test_the_reference_has_every_public_function(site, package, size):
    names = public_names(ROOT / "subspace_lab" / package)
    html = (site / "reference" / f"{package}.html").read_text(encoding="utf-8")
    shown = re.findall(r'<h\d id="([\w.]+)"', html)
    assert len(names) >= size and not names - set(shown)
    once = [name for name in shown if name.rpartition(".")[2] in ("principal_angles", "Bernoulli")]
    assert len(once) == {"linalg": 1, "theory": 1, "stats": 0}[package]


def test_formulas_and_examples_of_docstrings_are_set(site):
    html = unescape((site / "reference" / "theory.html").read_text(encoding="utf-8"))
    text = re.sub(r"<(pre|code|a)\b.*?</\1>", "", html, flags=re.DOTALL)
    assert "||W Σ<sup>1/2</sup>||<sub>*</sub><sup>2</sup>" in re.sub("</?span>", "", text)
    assert "<em>" not in text and "<blockquote>" not in text and ">>>" not in text


def test_nothing_is_loaded_from_elsewhere(site):
    for path in site.rglob("*.html"):
        loaded = re.findall(
            r'<(?:script|img|link)\b[^>]*?(?:src|href)="(https?:[^"]*)"', path.read_text("utf-8")
        )
        assert not loaded, path


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("sigma_1 of A^T", "sigma<sub>1</sub> of A<sup>T</sup>"),
        ("||W||_F^2", "||W||<sub>F</sub><sup>2</sup>"),
        ("||X||_*^2 ||Y||_*", "||X||<sub>*</sub><sup>2</sup> ||Y||<sub>*</sub>"),
        ("Σ^{-1/2} x_{t-1}", "Σ<sup>-1/2</sup> x<sub>t-1</sub>"),
        ("sum_{i<=k} cos^2", "sum<sub>i&lt;=k</sub> cos<sup>2</sup>"),
        ("A_t'^T and 1/q_x", "A<sub>t'</sub><sup>T</sup> and 1/q<sub>x</sub>"),
        ("(x - y)^2", "(x - y)<sup>2</sup>"),
        ("keep_prob of q_proj in a_file_name.py", "keep_prob of q_proj in a_file_name.py"),
        ("`sigma_1`", "<code>sigma_1</code>"),
    ],
)  # fmt: skip
def test_a_formula_has_scripts_and_a_name_has_none(mathematics, text, shown):
    html = markdown.markdown(text, extensions=[mathematics.Formulas()])
    assert re.sub("</?(p|span)>", "", html) == shown


def test_a_doctest_is_fenced_to_its_empty_line(mathematics):
    found = mathematics.DOCTEST.sub(r"[\g<0>]", "Text.\n\n>>> 1 + 1\n2\n\nMore.\n\n>>> 3\n3")
    assert found == "Text.\n\n[>>> 1 + 1\n2]\n\nMore.\n\n[>>> 3\n3]"
