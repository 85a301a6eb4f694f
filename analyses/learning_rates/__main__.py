from analyses.kit import run_analysis
from analyses.learning_rates import ANALYSIS

run_analysis(ANALYSIS)
