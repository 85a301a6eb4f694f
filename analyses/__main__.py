"""List the analyses with their questions, or run one by its name.

    python -m analyses
    python -m analyses effective_rank --run runs/first
    python -m analyses effective_rank --help

`python -m analyses.effective_rank` is the same as `python -m analyses effective_rank`.
"""

from __future__ import annotations

import importlib
import sys

from analyses.kit import run_analysis
from analyses.registry import COMMANDS, all_analyses, find_analysis
from subspace_lab.errors import exit_code_2_on_user_error


@exit_code_2_on_user_error
def main() -> None:
    """Run the analysis that the command line names; without a name, list all."""
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        print(__doc__)
        questions = {name: analysis.question for name, analysis in all_analyses().items()}
        for known, question in (questions | COMMANDS).items():
            print(f"  {known:<20}  {question}")
    elif name in COMMANDS:
        sys.argv = [f"python -m analyses.{name}", *arguments]
        importlib.import_module(f"analyses.{name}").main()
    else:
        run_analysis(find_analysis(name), arguments)


if __name__ == "__main__":
    main()
