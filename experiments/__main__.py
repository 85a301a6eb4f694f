"""Run the registered experiments: choose learning rates, train the final cells, table them.

    python -m experiments x1 x2 --jobs 2
    python -m experiments x1 --smoke --out /tmp/smoke

Finished runs are skipped and shared among experiments, so the same command continues. Tables go to
OUT/results.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from experiments.design import read_design
from experiments.running import own_rates, train, validation_losses
from subspace_lab.errors import exit_code_2_on_user_error
from subspace_lab.files import write_table
from subspace_lab.interruption import interruptible


@exit_code_2_on_user_error
def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="+", metavar="NAME", help="x1, x2, x3, x5 or x6")
    parser.add_argument("--out", type=Path, default=Path("runs/experiments"))
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side (default: 1)")
    parser.add_argument("--smoke", action="store_true", help="a small version of each")
    parser.add_argument("--rates-only", action="store_true", help="only choose learning rates")
    arguments = parser.parse_args()

    for name in arguments.names:
        design = read_design(name, smoke=arguments.smoke)
        with interruptible():
            train(design, design.rate_cells(), arguments.out / "rates", jobs=arguments.jobs)
            losses = validation_losses(design, arguments.out / "rates")
            write_table(arguments.out / "results" / f"{name}-rates.parquet", losses)
            own = own_rates(losses)
            for (regime, arm), rate in own.items():
                print(f"{regime} {arm}: {rate:g}")
            if not arguments.rates_only:
                cells = design.final_cells(own)
                train(design, cells, arguments.out / "final", jobs=arguments.jobs)


if __name__ == "__main__":
    main()
