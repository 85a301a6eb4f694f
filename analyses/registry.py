"""All analyses: every module or package here that declares an `ANALYSIS`.

The README's table, the demo, the report, `python -m analyses` and the documentation's tests read
this list, so an analysis is listed by being there.
"""

from __future__ import annotations

import importlib
import pkgutil

import analyses
from analyses.kit import Analysis
from subspace_lab.errors import UserError, did_you_mean

COMMANDS = {
    "figures": "which figures does a paper about these runs need?",
    "watch": "where does a run stand that is training?",
}
"""Modules here that are commands, but not analyses, and the questions that they answer."""


def all_analyses() -> dict[str, Analysis]:
    """Give every analysis by its name, in the order of their positions."""
    declared = [analysis for name in _names() if (analysis := _declared_in(name)) is not None]
    ordered = sorted(declared, key=lambda analysis: (analysis.position, analysis.name))
    return {analysis.name: analysis for analysis in ordered}


def find_analysis(name: str) -> Analysis:
    """Give one analysis by its name, without importing the others.

    Raises:
        UserError: if there is none of that name; suggests the nearest.
    """
    analysis = _declared_in(name) if name in _names() else None
    if analysis is None:
        hint = did_you_mean(name, [*all_analyses(), *COMMANDS])
        raise UserError(f"there is no analysis {name!r}{hint} (`python -m analyses` lists them)")
    return analysis


def _names() -> list[str]:
    modules = pkgutil.iter_modules(analyses.__path__)
    return [module.name for module in modules if not module.name.startswith("_")]


def _declared_in(name: str) -> Analysis | None:
    return getattr(importlib.import_module(f"analyses.{name}"), "ANALYSIS", None)
