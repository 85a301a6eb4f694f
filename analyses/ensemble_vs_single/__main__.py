"""`python -m analyses.ensemble_vs_single`."""

from analyses import ensemble_vs_single, kit

kit.run_analysis(ensemble_vs_single.ANALYSIS)
