"""`python -m analyses.rank_curve`."""

from analyses import kit, rank_curve

kit.run_analysis(rank_curve.ANALYSIS)
