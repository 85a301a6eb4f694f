"""One module or package per question; run as `python -m analyses.NAME --run RUN`.

`python -m analyses` lists them. Not among them are `kit/`, which holds what they share,
`comparisons/`, which holds what those of evaluated runs share, `watch`, which
prints where a run stands that still trains, and `registry.py`, which finds them.
"""
