"""One module per question; run as `python -m analyses.NAME --run RUN`."""
