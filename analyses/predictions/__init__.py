"""The predictions that `analyses.mask_theory` holds against runs, one topic a file.

Each is a function of a `Group`, the modules of one rank and all that was recorded about them. It
yields rows, and none where the record cannot test it.
"""
