from analyses.kit import run_analysis
from analyses.report import ANALYSIS

run_analysis(ANALYSIS)
