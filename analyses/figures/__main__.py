"""`python -m analyses.figures`."""

from analyses.figures import main

main()
