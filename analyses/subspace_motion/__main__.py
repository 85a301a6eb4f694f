"""`python -m analyses.subspace_motion`."""

from analyses import kit, subspace_motion

kit.run_analysis(subspace_motion.ANALYSIS)
