"""The demo: two runs on SmolLM2-135M, a sweep of three regimes on the pocket base, one report.

    python scripts/demo.py --out runs/demo

LoRA and step masks on SmolLM2 show the angles, ranks and spectra of a real model, in all analyses.
The sweep shows whether masks help: LoRA, step masks and token masks under label noise, with few
examples and in one pass over many, each at two learning rates, three seeds.

Every step is a command that a user could type, and is printed before it runs. What is finished is
not run again: trainings continue from their last checkpoint, and an analysis is repeated only if
what it reads has changed since.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from analyses.kit import Analysis, run_analysis
from analyses.registry import all_analyses
from subspace_lab import train

RUNS = {"lora": ["--method", "lora"], "step": ["--config", "step"]}
"""Name of a run on SmolLM2, and what sets it apart from the `demo` preset."""

REGIMES = ("label-noise", "few-examples", "one-pass")
"""Presets of the standard bench, in the names of the sweep's runs."""

OF_REGIMES = ("learning_rates", "paired_differences")
"""Analyses of the sweep; they compare test scores over seeds, which the others have none of."""

OPTIONS = {
    "merged_spectra": ["--modules", "*.layers.*[05].*"],
    "ensemble_vs_single": ["--masks", "4", "--examples", "16", "--validation", "0"],
    "gate_expansion": ["--masks", "2", "--examples", "1"],
}
"""What keeps the demo short: spectra of every fifth layer, few masks and examples."""

ONLY = {
    "subspace_angles": ("step",),  # LoRA has no masks
    "rank_curve": (),  # some hundred evaluations of each run
    "sharpness": (),  # some thousand backward passes
    "gate_expansion": ("step",),  # fourth derivatives of a whole model take their time
}
"""Analyses of some runs only."""


def main() -> None:
    """Run the demo."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/demo"))
    parser.add_argument("--preset", default="demo", help="of the two runs (default: demo)")
    parser.add_argument("--sweep", default="regimes", help="of the regimes (default: regimes)")
    arguments = parser.parse_args()
    started = time.monotonic()
    regimes = arguments.out / "regimes"
    sweep(arguments.sweep, regimes)
    folders = {name: arguments.out / name for name in RUNS}
    for name, folder in folders.items():
        command = ["--config", arguments.preset, *RUNS[name], "--eval_every", "28"]
        sys.argv = ["subspace_lab.train", *command, "--out", str(folder), "--resume", "true"]
        announce(*sys.argv)
        train.main()
    comparisons = arguments.out / "comparisons"
    compared = [comparisons / "model", *(comparisons / regime for regime in REGIMES)]
    analyze_model(folders, compared[0])
    for regime, folder in zip(REGIMES, compared[1:], strict=True):
        for name in OF_REGIMES:
            read = [*regimes.glob(f"*{regime}*/run.json")]
            named = ["--run", str(regimes / f"*{regime}*"), "--out", str(folder)]
            analyze(all_analyses()[name], read, folder, *named)
    page = arguments.out / "report.html"
    named = [str(folder) for folder in (*folders.values(), regimes / "*")]
    command = ["--run", *named, "--comparisons", *map(str, compared), "--out", str(page)]
    announce("analyses.report", *command)
    run_analysis(all_analyses()["report"], command)
    print(f"demo finished in {(time.monotonic() - started) / 60:.1f} minutes: open {page}")


def sweep(config: str, out: Path) -> None:
    """Train a sweep, two runs side by side.

    Raises:
        SystemExit: if a run fails.
    """
    command = ["subspace_lab.sweep", "--config", config, "--out", str(out), "--jobs", "2"]
    announce(*command)
    code = subprocess.run([sys.executable, "-m", *command]).returncode
    if code:
        sys.exit(code)


def analyze_model(folders: dict[str, Path], comparisons: Path) -> None:
    """Run every analysis that the report shows on the two runs, but those of test scores."""
    named = [part for folder in folders.values() for part in ("--run", str(folder))]
    for analysis in all_analyses().values():
        if not analysis.reading or analysis.name in OF_REGIMES:
            continue
        if analysis.compares:
            read = [path for folder in folders.values() for path in folder.glob("run.json")]
            read += [p for folder in folders.values() for p in folder.glob("analyses/*.parquet")]
            analyze(analysis, read, comparisons, *named, "--out", str(comparisons))
            continue
        for name in ONLY.get(analysis.name, RUNS):
            folder, options = folders[name], OPTIONS.get(analysis.name, [])
            read = [folder / "run.json"]
            analyze(analysis, read, folder / "analyses", "--run", str(folder), *options)


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
