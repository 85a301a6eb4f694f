"""`python -m analyses.gate_expansion`."""

from analyses import gate_expansion, kit

kit.run_analysis(gate_expansion.ANALYSIS)
