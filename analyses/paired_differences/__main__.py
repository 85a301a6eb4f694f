from analyses.kit import run_analysis
from analyses.paired_differences import ANALYSIS

run_analysis(ANALYSIS)
