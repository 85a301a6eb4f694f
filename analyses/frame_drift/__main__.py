"""`python -m analyses.frame_drift`."""

from analyses import frame_drift, kit

kit.run_analysis(frame_drift.ANALYSIS)
