"""All analyses: every module or package in this one that declares an `ANALYSIS`.

The README's table, the demo, the report and the documentation's tests read this list, so an
analysis is listed by being there.
"""

from __future__ import annotations

import importlib
import pkgutil

import analyses
from analyses.kit import Analysis


def all_analyses() -> dict[str, Analysis]:
    """Give every analysis by its name, in the order of their positions."""
    names = [m.name for m in pkgutil.iter_modules(analyses.__path__)]
    modules = [importlib.import_module(f"analyses.{n}") for n in names if not n.startswith("_")]
    declared = [module.ANALYSIS for module in modules if hasattr(module, "ANALYSIS")]
    ordered = sorted(declared, key=lambda analysis: (analysis.position, analysis.name))
    return {analysis.name: analysis for analysis in ordered}
