from analyses.kit import run_analysis
from analyses.paper_tables import ANALYSIS

run_analysis(ANALYSIS)
