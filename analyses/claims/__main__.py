"""`python -m analyses.claims`."""

from analyses.claims import ANALYSIS
from analyses.kit import run_analysis

run_analysis(ANALYSIS)
