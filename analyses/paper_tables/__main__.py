"""`python -m analyses.paper_tables`."""

from analyses.kit import run_analysis
from analyses.paper_tables import ANALYSIS

run_analysis(ANALYSIS)
