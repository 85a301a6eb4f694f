"""`python -m analyses.mask_theory`."""

from analyses.kit import run_analysis
from analyses.mask_theory import ANALYSIS

run_analysis(ANALYSIS)
