"""The demo: four runs on SmolLM2-135M, every analysis on them, one report.

    python scripts/demo.py --out runs/demo

Every step is a command that a user could type, and is printed before it runs. What is finished is
not run again: trainings continue from their last checkpoint, and an analysis is repeated only if
what it reads has changed since.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from analyses.kit import Analysis, run_analysis
from analyses.registry import all_analyses
from subspace_lab import train

RUNS = {
    "lora": ["--method", "lora"],
    "paper-eq2": ["--config", "paper-eq2"],
    "paper-code": ["--config", "paper-code"],
    "step": ["--config", "step"],
}
"""Name of a run, and what sets it apart from the `demo` preset."""

OPTIONS = {
    "merged_spectra": ["--modules", "*.layers.*[05].*"],
    "ensemble_vs_single": ["--masks", "5", "--examples", "24", "--validation", "0"],
    "gate_expansion": ["--masks", "4", "--examples", "1"],
}
"""What keeps the demo short: spectra of every fifth layer, few masks and examples."""

ONLY = {
    "subspace_angles": ("paper-eq2", "step"),  # the others have no step masks
    "rank_curve": (),  # some hundred evaluations of each run
    "sharpness": (),  # some thousand backward passes
    "gate_expansion": ("step",),  # fourth derivatives of a whole model take their time
}
"""Analyses of some runs only."""


def main() -> None:
    """Run the demo."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/demo"))
    parser.add_argument("--preset", default="demo", help="the training preset (default: demo)")
    arguments = parser.parse_args()
    started = time.monotonic()
    folders = {name: arguments.out / name for name in RUNS}
    for name, folder in folders.items():
        command = ["--config", arguments.preset, *RUNS[name], "--out", str(folder)]
        sys.argv = ["subspace_lab.train", *command, "--resume", "true"]
        announce(*sys.argv)
        train.main()
    named = [part for folder in folders.values() for part in ("--run", str(folder))]
    comparisons = arguments.out / "comparisons"
    known = all_analyses()
    for analysis in (one for one in known.values() if one.reading):
        if analysis.compares:
            read = [*arguments.out.glob("*/run.json"), *arguments.out.glob("*/analyses/*.parquet")]
            analyze(analysis, read, comparisons, *named, "--out", str(comparisons))
            continue
        for name in ONLY.get(analysis.name, RUNS):
            folder, options = folders[name], OPTIONS.get(analysis.name, [])
            read = [folder / "run.json"]
            analyze(analysis, read, folder / "analyses", "--run", str(folder), *options)
    page = arguments.out / "report.html"
    command = [*named, "--comparisons", str(comparisons), "--out", str(page)]
    announce("analyses.report", *command)
    run_analysis(known["report"], command)
    print(f"demo finished in {(time.monotonic() - started) / 60:.1f} minutes: open {page}")


def analyze(analysis: Analysis, read: Sequence[Path], out: Path, *arguments: str) -> None:
    """Run an analysis, unless its table in `out` is newer than the files that it reads."""
    table = out / f"{analysis.name}.parquet"
    if table.exists() and table.stat().st_mtime > max(path.stat().st_mtime for path in read):
        print(f"{table} is up to date")
        return
    announce(f"analyses.{analysis.name}", *arguments)
    run_analysis(analysis, arguments)


def announce(module: str, *arguments: str) -> None:
    """Print a command as a user would type it."""
    print(f"\n$ python -m {shlex.join([module, *arguments])}", flush=True)


if __name__ == "__main__":
    main()
