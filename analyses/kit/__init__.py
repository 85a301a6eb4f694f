"""What every analysis needs: declare one, iterate over cores, draw curves, and its command line.

`docs/how-to/new-analysis.md` builds an analysis from these in one file.
"""

from analyses.kit.analysis import Analysis, Plot, Summary
from analyses.kit.command import run_analysis
from analyses.kit.cores import StepMasks, map_parallel, over_batches, over_cores
from analyses.kit.curves import Panel, curves_over_steps
from analyses.kit.needs import Needs
from analyses.kit.summaries import medians_at_last_step
from analyses.kit.tables import concatenate, grid_table, ragged
from subspace_lab.recording.core_batches import CoreBatch

__all__ = [
    "Analysis",
    "CoreBatch",
    "Needs",
    "Panel",
    "Plot",
    "StepMasks",
    "Summary",
    "concatenate",
    "curves_over_steps",
    "grid_table",
    "map_parallel",
    "medians_at_last_step",
    "over_batches",
    "over_cores",
    "ragged",
    "run_analysis",
]
