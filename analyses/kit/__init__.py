"""What every analysis needs: declare one, iterate over cores, draw curves, and its command line.

`docs/how-to/new-analysis.md` builds an analysis from these in one file.
"""

from analyses.kit.analysis import Analysis, Plot, Summary, option
from analyses.kit.command import add_width, label, run_analysis
from analyses.kit.cores import Modules, StepMasks, Steps, map_parallel, over_batches, over_cores
from analyses.kit.curves import (
    at_last_step,
    curves_of,
    curves_over_steps,
    group_column,
    medians_at_last_step,
)
from analyses.kit.modules import module_map
from analyses.kit.needs import Needs, check_needs
from analyses.kit.seeds import over_seeds
from analyses.kit.selection import open_named_runs, select_modules, select_steps
from analyses.kit.snapshots import over_snapshots
from analyses.kit.tables import (
    concatenate,
    examples_note,
    grid_table,
    markdown_table,
    ragged,
    summary_by,
)
from analyses.kit.writing import default_folder, page_of
from subspace_lab.figures.page import Page
from subspace_lab.figures.panels import Panel
from subspace_lab.runs.core_batches import CoreBatch

__all__ = [
    "Analysis",
    "CoreBatch",
    "Modules",
    "Needs",
    "Page",
    "Panel",
    "Plot",
    "StepMasks",
    "Steps",
    "Summary",
    "add_width",
    "at_last_step",
    "check_needs",
    "concatenate",
    "curves_of",
    "curves_over_steps",
    "default_folder",
    "examples_note",
    "grid_table",
    "group_column",
    "label",
    "map_parallel",
    "markdown_table",
    "medians_at_last_step",
    "module_map",
    "open_named_runs",
    "option",
    "over_batches",
    "over_cores",
    "over_seeds",
    "over_snapshots",
    "page_of",
    "ragged",
    "run_analysis",
    "select_modules",
    "select_steps",
    "summary_by",
]
