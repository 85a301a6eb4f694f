"""Train, evaluate, sweep, convert and analyze masked low-rank adapters.

    subspace-lab train --config pocket --config step --out runs/first
    subspace-lab evaluate --run runs/first --tasks pocket --metric exact_match
    subspace-lab sweep --config keep-prob --out runs/keep-prob --jobs 4
    subspace-lab convert --adapter runs/loha --base pocket --rank 16 --out runs/loha-lora
    subspace-lab analyze effective_rank --run runs/first
    subspace-lab analyze

The last one lists the analyses. `subspace-lab COMMAND --help` explains a command's options, and
`subspace-lab --version` prints the version. `python -m subspace_lab.train` and its neighbors, and
`python -m analyses`, are the same commands.
"""

from __future__ import annotations

import importlib
import sys
from importlib import metadata

from subspace_lab.errors import UserError, did_you_mean, exit_code_2_on_user_error

MODULES = {
    "train": "subspace_lab.train",
    "evaluate": "subspace_lab.evaluate",
    "sweep": "subspace_lab.sweep",
    "convert": "subspace_lab.convert",
    "analyze": "analyses.__main__",
}
"""The commands, and the modules whose `main` they are; only the chosen one is imported."""


@exit_code_2_on_user_error
def main() -> None:
    """Hand the rest of the command line to the command that its first word names."""
    command, *arguments = sys.argv[1:] or ["--help"]
    if command in ("-h", "--help"):
        print(__doc__)
    elif command == "--version":
        print(metadata.version("subspace_lab"))
    elif command in MODULES:
        sys.argv = [f"subspace-lab {command}", *arguments]
        importlib.import_module(MODULES[command]).main()
    else:
        hint = did_you_mean(command, MODULES)
        raise UserError(f"there is no command {command!r}{hint} (see subspace-lab --help)")


if __name__ == "__main__":
    main()
