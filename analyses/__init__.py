"""One module or package per question; run as `python -m analyses.NAME --run RUN`.

One run, from its record: learning_curves, effective_rank, subspace_angles, frame_drift,
regulariser, merged_spectra; two adapters: grassmann. With the whole model: ensemble_vs_single,
rank_curve, gate_expansion, sharpness. Theory held against records: mask_theory; the paper's claims:
claims. Comparisons of evaluated runs: paired_differences, paper_tables (with comparisons/, which is
not a command). All of it on one page: report. A run that still trains: watch, which prints a line
and declares no analysis. `kit/` holds what they share, `registry.py` lists
them.
"""
