"""The demo: four runs on SmolLM2-135M, every analysis on them, one report.

    python scripts/demo.py --out runs/demo

Every step is a command that a user could type, and is printed before it runs. What is finished is
not run again: trainings go on from their last checkpoint, and an analysis is repeated only if its
run has changed since.
"""

from __future__ import annotations

import argparse
import runpy
import shlex
import sys
import time
from pathlib import Path

RUNS = {
    "lora": ["--method", "lora"],
    "paper-eq2": ["--config", "paper-eq2"],
    "paper-code": ["--config", "paper-code"],
    "step": ["--config", "step"],
}
"""Name of a run, and what sets it apart from the `demo` preset."""

ANALYSES = (
    "learning_curves",
    "effective_rank",
    "subspace_angles",
    "frame_drift",
    "regulariser",
    "merged_spectra",
    "ensemble_vs_single",
    "gate_expansion",
    "mask_theory",
)
OPTIONS = {
    "merged_spectra": ["--modules", "*.layers.*[05].*"],
    "ensemble_vs_single": ["--masks", "5", "--examples", "24"],
    "gate_expansion": ["--masks", "4", "--examples", "1"],
}
"""What keeps the demo short: spectra of every fifth layer, few masks and rows."""

ONLY = {
    "subspace_angles": ("paper-eq2", "step"),  # the others have no step masks
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
        train = ["subspace_lab.train", "--config", arguments.preset, *RUNS[name]]
        run(*train, "--out", str(folder), "--resume", "true")
    for analysis in ANALYSES:
        for name in ONLY.get(analysis, RUNS):
            folder = folders[name]
            table = folder / "analyses" / f"{analysis}.parquet"
            if table.exists() and table.stat().st_mtime > (folder / "run.json").stat().st_mtime:
                print(f"{table} is up to date")
                continue
            run(f"analyses.{analysis}", "--run", str(folder), *OPTIONS.get(analysis, []))
    report = arguments.out / "report.html"
    named = [part for folder in folders.values() for part in ("--run", str(folder))]
    claims = arguments.out / "claims"
    run("analyses.claims", *named, "--out", str(claims))
    run("analyses.report", *named, "--claims", str(claims / "claims.html"), "--out", str(report))
    print(f"demo finished in {(time.monotonic() - started) / 60:.1f} minutes: open {report}")


def run(module: str, *arguments: str) -> None:
    """Print `python -m MODULE ...` and do the same in this process, where torch is imported."""
    print(f"\n$ python -m {shlex.join([module, *arguments])}", flush=True)
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
