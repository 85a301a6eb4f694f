"""Formulas of docstrings and pages on the site: plain text there, sub- and superscripts here.

Docstrings write sigma_1, A^T and ||W||_F^2 as plain text, set-off equations as indented blocks
(which Markdown shows as they are) and examples as doctests.
"""

from __future__ import annotations

import re
from typing import Any
from xml.etree import ElementTree

import griffe
from markdown import Extension, Markdown
from markdown.inlinepatterns import InlineProcessor
from mkdocs.config.defaults import MkDocsConfig

NAMES = "CE|Delta|Sigma|Var|delta|lambda|lr|mu|phi|rho|sigma|sum|tau|theta"
LETTER = rf"(?<!\w)(?:[dΔ]?[A-Za-zΑ-ω]\d?|{NAMES})'?"  # may have a subscript; not so keep_prob
BASE = rf"{LETTER}|\w+'?(?=\^)|[)\]|‖}}]"  # any word may have an exponent
SCRIPT = r"(?:\{[^{}\n]*\}|-?[^\W_]+'?|[*+])"
SCRIPTS = rf"_(?!proj){SCRIPT}(?:\^{SCRIPT})?|\^{SCRIPT}(?:_{SCRIPT})?"
FORMULA = rf"(?P<base>{BASE})(?P<scripts>{SCRIPTS})(?![\w.]*_)"
DOCTEST = re.compile(r"^>>> .+?(?=\n\n|\Z)", re.MULTILINE | re.DOTALL)
TAGS = {"_": "sub", "^": "sup"}


class Formula(InlineProcessor):
    """Sets what follows _ and ^ in a formula as a sub- or superscript."""

    def handleMatch(  # noqa: N802 # its name in Markdown
        self, m: re.Match[str], data: str
    ) -> tuple[ElementTree.Element, int, int]:
        """Make one span: the base, and its scripts."""
        span = ElementTree.Element("span")
        span.text = m["base"]
        for mark, script in re.findall(rf"([_^])({SCRIPT})", m["scripts"]):
            ElementTree.SubElement(span, TAGS[mark]).text = script.strip("{}")
        return span, m.start(0), m.end(0)


class Formulas(Extension):
    """Formulas before emphasis (the star of a nuclear norm is none), after code."""

    def extendMarkdown(self, md: Markdown) -> None:  # noqa: N802
        """Register the pattern."""
        md.inlinePatterns.register(Formula(FORMULA, md), "formula", 185)


class Docstrings(griffe.Extension):
    """Shows doctests as code, and what a module re-exports where it is defined only."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Fence each doctest, up to its empty line."""
        if obj.docstring:
            obj.docstring.value = DOCTEST.sub(r"```pycon\n\g<0>\n```", obj.docstring.value)

    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        """Forget the lists of re-exports; `analyses.kit`, which consists of them, keeps its own."""
        if pkg.name == "subspace_lab":
            forget_exports(pkg)


def forget_exports(module: griffe.Module) -> None:
    """Set aside `__all__` of a module and of those in it."""
    module.exports = None
    for inner in module.modules.values():
        if not inner.is_alias:
            forget_exports(inner)


def on_config(config: MkDocsConfig) -> None:
    """Add formulas to the extensions of all pages, those of docstrings included."""
    config.markdown_extensions.append(Formulas())
