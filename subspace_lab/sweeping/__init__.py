"""Many training runs from one file: the grid, the runs, their state, and what they select."""
