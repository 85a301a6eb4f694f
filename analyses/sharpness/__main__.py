"""`python -m analyses.sharpness`."""

from analyses import kit, sharpness

kit.run_analysis(sharpness.ANALYSIS)
